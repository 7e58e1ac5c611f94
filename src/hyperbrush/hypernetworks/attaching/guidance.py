"""The sides of classifier-free guidance in a batch, for networks that act on one of them."""

from typing import Any

from hyperbrush.errors import UserError, unknown_name

GUIDANCE = ("both", "conditional")


def check_guidance(guidance: str, pipe_or_unet: Any, transformer: bool = False) -> None:
    """Refuse a side that does not exist, or that this pipeline's batches do not show.

    Raises:
        UserError: an unknown name; "conditional" on a bare UNet, with sides in another order than (unconditional,
            conditional), or on a transformer.
    """
    if guidance not in GUIDANCE:
        raise unknown_name("side of guidance", guidance, GUIDANCE)
    if guidance == "both":
        return
    if transformer:
        raise UserError(
            "guidance='conditional' cannot be told apart on transformers, whose pipelines hand over the sides in other "
            "orders or one by one: use 'both'"
        )
    if not hasattr(pipe_or_unet, "unet"):
        raise UserError(
            "guidance='conditional' needs to know which rows of a batch are the conditional side, and a bare "
            f"{type(pipe_or_unet).__name__} does not: attach to the pipeline, or to a LatentDiffusion"
        )
    kind = type(pipe_or_unet).__name__
    if not hasattr(pipe_or_unet, "rows_per_picture") and not hasattr(
        type(pipe_or_unet), "do_classifier_free_guidance"
    ):
        raise UserError(
            f"guidance='conditional' needs to know whether a batch has both sides, and {kind} does not tell: use 'both'"
        )
    if "Pix2Pix" in kind or hasattr(type(pipe_or_unet), "do_perturbed_attention_guidance"):
        raise UserError(
            f"guidance='conditional' cannot be told apart in {kind}, whose guidance has three sides: use 'both'"
        )


def unconditional_rows(pipe: Any, batch: int) -> int:
    """How many rows of a UNet's batch, the first of it, are the unconditional side: 0 without guidance.

    Raises:
        UserError: another pipeline than this one is drawing, its guidance unknown.
    """
    rows = getattr(pipe, "rows_per_picture", None)  # of `LatentDiffusion`
    if rows is None and hasattr(type(pipe), "do_classifier_free_guidance"):
        try:
            rows = 2 if pipe.do_classifier_free_guidance else 1
        except AttributeError as error:  # it is known from the first call on
            raise UserError(
                f"guidance='conditional': the {type(pipe).__name__} that this is attached to has not drawn yet, so another "
                "pipeline runs its UNet: attach to the one that draws"
            ) from error
    rows = rows or 1
    return batch // rows if rows > 1 and batch % rows == 0 else 0
