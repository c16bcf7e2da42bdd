"""The pictures that commands save."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zooprune.asking import Comparison
    from zooprune.evaluation.gallery import Gallery


def save_kept(path: Path | None, question: str, result: Comparison, method: str) -> None:
    """Save a picture of the kept tokens of each image, if a file is given."""
    if path is None:
        return
    from zooprune.picture import draw_kept, save_picture, stack
    from zooprune.pruners import pruner_class

    caption = (
        f"{question}\n"
        f"all {result.full.visual_tokens} tokens: {result.full.text}\n"
        f"{method}, {result.pruned.visual_tokens} tokens: {result.pruned.text}"
    )
    label, reports = pruner_class(method).scores_label, result.pruned.images
    # With as many reports as images, each report is about an image; otherwise `draw_kept` says what is wrong.
    groups = [[report] for report in reports] if len(reports) == len(result.seen) else [reports]
    drawn = [
        draw_kept(image, group, caption if number == len(groups) else "", scores_label=label)
        for number, (image, group) in enumerate(zip(result.seen, groups, strict=False), 1)
    ]
    save_picture(stack(drawn), path)


def save_gallery(path: Path, found: Gallery, question: str, expected: str | None) -> None:
    """Save the panels of all methods as a picture."""
    from PIL.Image import Dither

    from zooprune.data.images import picture_format
    from zooprune.picture import CannotDrawError, draw_gallery, save_picture

    kept = found.panels[-1].selections[0]
    caption = (
        f"{len(kept)} of {kept.total} visual tokens are kept and shown in colour. "
        "A patch in a frame is a mixture of several tokens.\n"
        f"A tick marks {'the right answer' if expected else 'the answer with all tokens'}"
        f"{f', {expected}' if expected else ''}; a cross marks any other."
    )
    try:
        picture = draw_gallery(found.seen, found.panels, question, caption)
    except CannotDrawError as error:
        raise ValueError(f"{error}, and give --json for the answers alone") from error
    if picture_format(path) == "PNG":
        # Panels of one image share their colours: a palette halves the file.
        picture = picture.quantize(256, dither=Dither.NONE)
    save_picture(picture, path)
