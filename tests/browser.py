"""A browser without a window: what it says of a page, and what the page asked for."""

import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

NAMES = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--enable-logging=stderr", "--dump-dom"),
    "--host-resolver-rules=MAP * ~NOTFOUND",  # nothing leaves this machine, whatever is asked for
)
# Keeps a copy of the page loading until its videos have moved, or for 20 seconds; then the page
# is handed out with what became of them as its title.
WATCH = """
<iframe id="hold" hidden></iframe>
<script>
const hold = document.getElementById("hold").contentDocument;
hold.open();
hold.write("x");
const videos = [...document.querySelectorAll("video")];
let rounds = 0;
const timer = setInterval(() => {
  document.title = JSON.stringify(videos.map(
    (v) => ({ ready: v.readyState, duration: v.duration, at: v.currentTime, width: v.videoWidth })
  ));
  if (videos.every((v) => v.currentTime > 0) || ++rounds > 200) {
    clearInterval(timer);
    hold.close();
  }
}, 100);
</script>
"""


class Visit(NamedTuple):
    """What came of opening a page: the page as the browser has it, complaints, addresses."""

    dom: str
    console: list[str]
    asked: list[str]


def find() -> str | None:
    """The browser's program, if there is one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def visit(program: str, page: Path, *, width: int = 1200, height: int = 3000) -> Visit:
    """Open a page in a window so large that videos are in sight: others do not start to play."""
    with tempfile.TemporaryDirectory() as profile:
        network = Path(profile) / "network.json"
        own = [f"--user-data-dir={profile}", f"--log-net-log={network}"]
        words = [program, *OPTIONS, *own, f"--window-size={width},{height}", page.as_uri()]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
        events = json.loads(network.read_text())["events"]
    console = [line for line in done.stderr.splitlines() if ":CONSOLE:" in line]
    told = [event.get("params", {}) for event in events]
    # The browser's own requests have no origin; those of a page from a file have "null".
    asked = [p["url"] for p in told if "url" in p and p.get("initiator", "not an origin") == "null"]
    return Visit(done.stdout, console, asked)


def without_policy(page: str) -> str:
    """Let scripts of a test run in a copy of a page."""
    return re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)


def title(dom: str) -> str:
    """The title of a page."""
    found = re.search(r"<title>(.*?)</title>", dom)
    assert found
    return found[1]
