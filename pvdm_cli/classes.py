"""Which class a video is drawn of: one that is named, one by lot, each in turn, or none."""

from collections.abc import Sequence

import numpy as np

from pvdm_cli.errors import PvdmError, did_you_mean

NO_CLASS = "none"  # the word for --class that asks for the null class
EACH = "each"  # the word for --class that asks for all classes in turn
LOT = 0xC1A  # a third word keys the class of a video apart from its noise
SHOWN = 12  # names told in a message


def find_class(classes: Sequence[str], word: str, model: str) -> int:
    """Find the label of a class by its name or number; -1 for "none".

    Args:
        classes: Names of the classes that the model knows.
        word: What --class says; a name comes before a number, and both before "none".
        model: What the model is called, for the message.

    Raises:
        PvdmError: If there is no such class, naming those there are.
    """
    if not classes:
        raise PvdmError(
            f"--class {word}: {model} was trained without classes; leave the option out, or train "
            "with data.labels=true on a cache made by `pvdm encode --labels`"
        )
    if word in classes:
        return classes.index(word)
    if word.isdecimal() and int(word) < len(classes):
        return int(word)
    if word == NO_CLASS:
        return -1
    more = f", ... {len(classes)} in all, see `pvdm info`" if len(classes) > SHOWN else ""
    raise PvdmError(
        f"--class {word!r}: {model} has no such class{did_you_mean(word, classes)} "
        f"(known: {', '.join(classes[:SHOWN])}{more})"
    )


def draw_class(num_classes: int, seed: int, video: int) -> int:
    """Draw the label of a video, each class as likely as the others, by (seed, video) alone."""
    return int(np.random.default_rng((seed, video, LOT)).integers(num_classes))


def in_turn(classes: Sequence[str], word: str | None) -> bool:
    """Whether --class asks for all classes in turn; a class of that name comes first."""
    return word == EACH and bool(classes) and EACH not in classes
