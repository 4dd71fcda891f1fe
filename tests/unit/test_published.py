"""Names, sizes and files of published weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from recipe import published_state, weights
from torch import Tensor

from pvdm_cli.config import ModelConfig
from pvdm_cli.errors import ConfigError, ModelError
from pvdm_cli.published.files import read_state, write_state
from pvdm_cli.published.names import (
    NETWORKS,
    buffers,
    build,
    entries,
    from_published,
    is_buffer,
    to_published,
)
from pvdm_cli.published.sizes import Weights, infer

PRESET = "ucf101/diffusion-l"


def config(**changes: dict[str, Any]) -> ModelConfig:
    """A tiny network with s, h and w all different; sections may be changed."""
    sections: dict[str, dict[str, Any]] = {
        "clip": {"frames": 4, "height": 32, "width": 48, "resize": "bilinear", "antialias": False},
        "autoencoder": {
            "patch": 4,
            "width": 16,
            "depth": 2,
            "num_heads": 2,
            "head_dim": 8,
            "latent_channels": 3,
            "projection_depth": 1,
            "projection_heads": 2,
            "projection_mlp": 24,
        },
        "denoiser": {
            "base_channels": 32,
            "channel_multipliers": (1, 2),
            "num_res_blocks": 1,
            "attention_downsamplings": (2,),
            "num_heads": 8,
        },
        "diffusion": {"prefix_prob": 0.3},
    }
    for section, values in changes.items():
        sections[section] |= values
    return ModelConfig.model_validate(sections)


# Every size that shapes tell, away from its value above.
OTHERS = [
    config(),
    config(autoencoder={"depth": 1, "width": 24, "latent_channels": 5, "projection_mlp": 8}),
    config(autoencoder={"patch": 2, "num_heads": 3, "projection_depth": 3, "projection_heads": 1}),
    config(clip={"frames": 6, "height": 24, "width": 40}, autoencoder={"head_dim": 4}),
    config(denoiser={"channel_multipliers": (1,), "attention_downsamplings": ()}),
    config(denoiser={"channel_multipliers": (1,), "attention_downsamplings": (1,)}),
    config(denoiser={"base_channels": 64, "num_res_blocks": 2}),
    config(denoiser={"channel_multipliers": (1, 1, 3), "attention_downsamplings": (1, 4)}),
    config(denoiser={"channel_multipliers": (2, 1), "num_res_blocks": 3}),
]


@pytest.mark.parametrize(("kind", "section"), [("autoencoder", "ae"), ("denoiser", "unet")])
def test_names_and_shapes_are_those_of_the_published_files(
    shared: Path, kind: str, section: str
) -> None:
    keys = json.loads((shared / "reference/pvdm/meta.json").read_text())[f"{section}_keys"]
    reference = ModelConfig.model_validate(
        {
            "autoencoder": {"width": 64},
            "denoiser": {
                "base_channels": 32,
                "channel_multipliers": (1, 2, 2),
                "num_res_blocks": 1,
                "attention_downsamplings": (1, 2),
                "num_heads": 4,
            },
        }
    )
    network = build(NETWORKS[kind], reference)
    ours = {entry.published: list(entry.shape) for entry in entries(network)}
    tables = {key: list(value.shape) for key, value in buffers(network, reference).items()}
    assert ours | tables == keys
    assert {key for key in keys if is_buffer(key)} == tables.keys()


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("sizes", OTHERS, ids=range(len(OTHERS)))
def test_conversion_and_back_is_exact_at_any_size(sizes: ModelConfig, kind: str) -> None:
    published = published_state(kind, sizes)
    network = NETWORKS[kind](sizes)
    network.load_state_dict(from_published(published, network, where="recipe"))
    again = to_published(network.state_dict(), network, sizes)
    assert again.keys() == published.keys()
    assert all(torch.equal(again[key], published[key]) for key in published)
    assert all(value.is_contiguous() for value in again.values())


@pytest.mark.parametrize("sizes", OTHERS, ids=range(len(OTHERS)))
def test_sizes_are_read_off_the_weights(sizes: ModelConfig) -> None:
    found = infer(PRESET, [], weights("autoencoder", sizes), weights("denoiser", sizes))
    assert found.config == sizes
    assert any(change.startswith("autoencoder.width is ") for change in found.changes)


def test_a_preset_that_agrees_with_the_weights_is_left_alone() -> None:
    overrides = ["denoiser.attention_downsamplings=[8,4,2,1]", "denoiser.channel_multipliers=[1,2]"]
    sizes = config(denoiser={"attention_downsamplings": (1, 2)})
    found = infer(PRESET, overrides, None, weights("denoiser", sizes))
    assert found.config.denoiser is not None
    assert found.config.denoiser.attention_downsamplings == (8, 4, 2, 1)
    assert not any("attention" in change for change in found.changes)


def test_an_autoencoder_alone_has_no_denoiser_section() -> None:
    found = infer(PRESET, [], weights("autoencoder", config()), None)
    assert found.config.denoiser is None
    assert found.config.diffusion is None


@pytest.mark.parametrize(
    ("override", "says"),
    [
        (
            "autoencoder.width=32",
            r"autoencoder.width=32 contradicts .* mean 16 \(autoencoder.pth: ",
        ),
        ("autoencoder.depth=3", "autoencoder.depth=3 contradicts .* mean 2 "),
        ("autoencoder.patch=8", "autoencoder.patch=8 contradicts .* mean 4 "),
        ("autoencoder.head_dim=16", "autoencoder.head_dim=16 contradicts .* mean 8 "),
        ("autoencoder.latent_channels=4", "autoencoder.latent_channels=4 contradicts .* mean 3 "),
        ("autoencoder.projection_depth=4", "autoencoder.projection_depth=4 .* mean 1 "),
        ("clip.frames=16", "clip.frames=16 contradicts .* mean 4 "),
        ("clip.height=48", "clip.height=48 contradicts .* mean 32 "),
        ("denoiser.base_channels=64", "denoiser.base_channels=64 .* mean 32 "),
        ("denoiser.num_res_blocks=2", "denoiser.num_res_blocks=2 .* mean 1 "),
        ("denoiser.channel_multipliers=[1,2,4]", r"\[1,2,4\] contradicts .* mean \[1,2\] "),
        ("denoiser.attention_downsamplings=[1]", r"\[1\] contradicts .* mean \[2\] "),
    ],
)
def test_an_override_that_contradicts_the_weights_is_refused(override: str, says: str) -> None:
    sizes = config()
    with pytest.raises(ModelError, match=says):
        infer(PRESET, [override], weights("autoencoder", sizes), weights("denoiser", sizes))


def test_networks_of_two_models_are_refused() -> None:
    other = config(autoencoder={"latent_channels": 4})
    with pytest.raises(ModelError, match=r"latent_channels is 3 by autoencoder\.pth.* but 4 by"):
        infer(PRESET, [], weights("autoencoder", config()), weights("denoiser", other))


def without_tables(sizes: ModelConfig) -> Weights:
    """Shapes of an autoencoder file that holds parameters only."""
    state = published_state("autoencoder", sizes)
    return Weights({k: v for k, v in state.items() if not is_buffer(k)}, "ae.pth")


@pytest.mark.parametrize(
    "overrides",
    [
        ["autoencoder.num_heads=2"],
        ["autoencoder.head_dim=8"],
        ["autoencoder.num_heads=2", "autoencoder.head_dim=8"],
    ],
)
def test_without_rotary_tables_one_of_head_number_and_size_suffices(overrides: list[str]) -> None:
    found = infer(PRESET, overrides, without_tables(config()), None).config.autoencoder
    assert (found.num_heads, found.head_dim) == (2, 8)


def test_without_rotary_tables_undetermined_heads_are_refused() -> None:
    with pytest.raises(ModelError, match=r"num_heads \* autoencoder.head_dim = 16, not 8 \* 64"):
        infer(PRESET, [], without_tables(config()), None)


def test_a_denoiser_needs_a_diffusion_preset() -> None:
    with pytest.raises(ConfigError, match="no denoiser and diffusion sections"):
        infer("ucf101/autoencoder", [], None, weights("denoiser", config()))


def test_a_denoiser_without_prefix_channels_is_refused() -> None:
    state = published_state("denoiser", config())
    stem = "diffusion_model.input_blocks.0.0.weight"
    state[stem] = state[stem][:, :3]
    with pytest.raises(ModelError, match="takes 3 channels where 6 are expected"):
        infer(PRESET, [], None, Weights(state, "unet.pth"))


def changed(change: str) -> dict[str, Tensor]:
    """A published autoencoder with one thing wrong."""
    state = published_state("autoencoder", config())
    if change == "missing":
        del state["decoder.layers.1.2.fn.net.0.bias"]
    elif change == "unknown":
        state["encoder.layers.0.0.fn.to_qkv.bias"] = torch.zeros(48)
    else:
        state["post_xt.bias"] = torch.zeros(17)
    return state


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("missing", "x.pth: weight decoder.layers.1.2.fn.net.0.bias is missing"),
        ("unknown", "x.pth: weight encoder.layers.0.0.fn.to_qkv.bias is not part of this network"),
        ("shape", r"x.pth: post_xt.bias has shape \[17\], the configuration needs \[16\]"),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused(change: str, says: str) -> None:
    network = build(NETWORKS["autoencoder"], config())
    with pytest.raises(ModelError, match=says):
        from_published(changed(change), network, where="x.pth")


def wrapped(state: dict[str, Tensor], how: str) -> Any:
    """A state dict as various training scripts save it."""
    zeros = {key: torch.zeros_like(value) for key, value in state.items()}
    return {
        "plain": state,
        "module": {f"module.{key}": value for key, value in state.items()},
        "compiled": {f"module._orig_mod.{key}": value for key, value in state.items()},
        "container": {"epoch": 3, "state_dict": state},
        "averaged": {"model": zeros, "ema": {"decay": 0.9, "shadow": state}},
        "both": {
            **{f"model.{key}": value for key, value in zeros.items()},
            **{f"ema_model.{key}": value for key, value in state.items()},
        },
    }[how]


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("how", ["plain", "module", "compiled", "container", "averaged", "both"])
def test_wrappings_are_taken_off(tmp_path: Path, kind: str, how: str) -> None:
    state = published_state(kind, config())
    torch.save(wrapped(state, how), tmp_path / "x.pth")
    found = read_state(tmp_path / "x.pth", kind)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], state[key]) for key in state)


def test_a_bare_unet_file_is_read_as_one(tmp_path: Path) -> None:
    state = published_state("denoiser", config())
    bare = {key.removeprefix("diffusion_model."): value for key, value in state.items()}
    write_state(bare, tmp_path / "unet.pth")
    assert read_state(tmp_path / "unet.pth", "denoiser").keys() == state.keys()


class Code:
    """Something whose unpickling runs code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code from a weight file ran",))


def test_code_in_a_file_is_refused_and_never_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"state_dict": Code()}, tmp_path / "evil.pth")
    with pytest.raises(ModelError, match="pickled code is never run"):
        read_state(tmp_path / "evil.pth", "autoencoder")
    assert "ran" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"hello\n", b"PK\x03\x04" + bytes(100)])
def test_files_that_are_no_weights_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(ModelError, match=r"x\.pth: ") as refusal:
        read_state(tmp_path / "x.pth", "denoiser")
    assert "\n" not in str(refusal.value)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    write_state(published_state("autoencoder", config()), path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="not a readable PyTorch file, perhaps truncated"):
        read_state(path, "autoencoder")


def test_the_other_network_is_named(tmp_path: Path) -> None:
    write_state(published_state("denoiser", config()), tmp_path / "x.pth")
    with pytest.raises(ModelError, match="it holds a published denoiser; give it as --denoiser"):
        read_state(tmp_path / "x.pth", "autoencoder")


def test_unrelated_tensors_and_values_are_named(tmp_path: Path) -> None:
    torch.save({"betas": torch.zeros(3)}, tmp_path / "x.pth")
    with pytest.raises(ModelError, match="its first keys: betas"):
        read_state(tmp_path / "x.pth", "autoencoder")
    state = published_state("autoencoder", config())
    torch.save({**state, "step": 3}, tmp_path / "y.pth")
    with pytest.raises(ModelError, match="step is a int, not a tensor"):
        read_state(tmp_path / "y.pth", "autoencoder")


@pytest.mark.parametrize("override", ["training.steps=5", "denoiser.num_heads=2"])
def test_an_override_that_would_change_nothing_is_refused(override: str) -> None:
    with pytest.raises(ConfigError, match=override.partition(".")[0]):
        infer(PRESET, [override], weights("autoencoder", config()), None)
