"""What a conversion to LoRA lost, in figures and in words."""

from dataclasses import dataclass, replace

from hyperbrush.hypernetworks.attaching.output_error import OutputError
from hyperbrush.ldm.modules.attention_sites import AttentionSite


@dataclass(frozen=True)
class SiteReport:
    """One attention."""

    site: AttentionSite
    exact: bool  # the networks are affine: only the rank (and a lost bias) can cost something
    key_rank: int
    value_rank: int
    key_energy: float  # share of the change that the rank keeps
    value_energy: float
    bias_lost: bool  # the values have an offset that the form cannot say
    error: OutputError | None  # of the attention's output on real contexts


@dataclass(frozen=True)
class PictureError:
    """One picture drawn with the hypernetwork and with the LoRA, float32."""

    prompt: str
    relative: float  # ‖lora − hypernetwork‖ / ‖hypernetwork‖ over the pixels
    psnr: float  # dB, of pixels in [0, 1]
    change_psnr: float  # dB between the picture without and with the hypernetwork: how much is at stake


@dataclass(frozen=True)
class LoraReport:
    """The whole LoRA."""

    sites: tuple[SiteReport, ...]
    strength: str
    bias_carried: bool  # the values' offset is in the LoRA, as a bias
    pictures: tuple[PictureError, ...] = ()

    @property
    def error(self) -> OutputError | None:
        """Of all attentions' outputs together; None where no contexts were sampled."""
        errors = [s.error for s in self.sites if s.error is not None]
        return sum(errors, OutputError()) if errors else None

    @property
    def exact_maps(self) -> bool:
        """Whether every network is affine, so that the maps themselves are exact."""
        return all(s.exact for s in self.sites)

    @property
    def lost(self) -> list[str]:
        """What this LoRA cannot say, in words."""
        lost = []
        if not self.exact_maps:
            lost.append(
                "the networks' non-linearity: each is replaced by its best affine map on the contexts"
            )
        least = min(min(s.key_energy, s.value_energy) for s in self.sites)
        if least < 1 - 1e-9:
            lost.append(f"what lies beyond the rank: the layer cut most keeps {least:.1%} of its change")
        shifted = sum(s.bias_lost for s in self.sites)
        if shifted:
            lost.append(f"the values' offset at {shifted} attentions (bias=True carries it)")
        return lost

    def with_pictures(self, pictures: tuple[PictureError, ...]) -> "LoraReport":
        """The same, with errors of pictures."""
        return replace(self, pictures=pictures)

    def __str__(self) -> str:
        ranks = sorted({r for s in self.sites for r in (s.key_rank, s.value_rank)})
        shown = f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
        text = f"{len(self.sites)} attentions, rank {shown}, strength {self.strength}"
        if self.error is not None:
            text += (
                f"; error of the attentions' output {self.error.relative:.2e} "
                f"({self.error.of_change:.1%} of what the hypernetwork changes)"
            )
        for picture in self.pictures:
            text += (
                f"\npicture {picture.prompt!r}: relative error {picture.relative:.2e}, PSNR {picture.psnr:.1f} dB "
                f"(without the hypernetwork {picture.change_psnr:.1f} dB)"
            )
        if self.bias_carried:
            text += (
                "\nthe values' offset is a bias, which pipe.fuse_lora() and PEFT's merge refuse (bias=False, "
                "--no-bias: a LoRA that fuses)"
            )
        for lost in self.lost:
            text += f"\nlost: {lost}"
        return text
