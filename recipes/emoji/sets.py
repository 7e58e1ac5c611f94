"""The icon sets of the embedded model's world: where they come from, how they look, who may see them."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

EMOJI_VARIANTS = (  # skin tones (also Fluent's bare suffixes), flags, keycaps, bare characters
    r"skin-tone|^flag-|-flag$|keycap|^regional-indicator|^tag-|^digit-|^.$"
    r"|-(light|medium-light|medium|medium-dark|dark)(-(light|medium-light|medium|medium-dark|dark))*$"
)
PACKAGES = {  # npm package @iconify-json/NAME: (version fetched, licence, whose)
    "noto": ("1.2.9", "Apache-2.0", "Noto Emoji, Google"),
    "noto-v1": ("1.2.5", "Apache-2.0", "Noto Emoji (older), Google"),
    "fluent-emoji": ("1.2.7", "MIT", "Fluent Emoji, Microsoft Corporation"),
    "fluent-emoji-flat": ("1.2.6", "MIT", "Fluent Emoji Flat, Microsoft Corporation"),
    "fluent-emoji-high-contrast": ("1.2.6", "MIT", "Fluent Emoji High Contrast, Microsoft Corporation"),
    "twemoji": ("1.2.5", "CC-BY-4.0", "Twemoji, Twitter"),
    "emojione": ("1.2.3", "CC-BY-4.0", "EmojiOne 2, EmojiOne"),
    "emojione-monotone": ("1.2.1", "CC-BY-4.0", "EmojiOne Monotone, EmojiOne"),
    "streamline-emojis": ("1.2.4", "CC-BY-4.0", "Streamline Emojis, Streamline"),
    "fxemoji": ("1.2.2", "Apache-2.0", "FxEmojis, Mozilla"),
    "ph": ("1.2.2", "MIT", "Phosphor, Phosphor Icons"),
    "solar": ("1.2.13", "CC-BY-4.0", "Solar, 480 Design"),
    "icon-park": ("1.2.4", "Apache-2.0", "IconPark, ByteDance"),
    "icon-park-outline": ("1.2.4", "Apache-2.0", "IconPark Outline, ByteDance"),
    "icon-park-solid": ("1.2.4", "Apache-2.0", "IconPark Solid, ByteDance"),
    "icon-park-twotone": ("1.2.4", "Apache-2.0", "IconPark TwoTone, ByteDance"),
    "mingcute": ("1.2.8", "Apache-2.0", "MingCute, MingCute Design"),
    "hugeicons": ("1.2.35", "MIT", "Huge Icons, Hugeicons"),
    "tabler": ("1.2.41", "MIT", "Tabler Icons, Paweł Kuna"),
    "lucide": ("1.2.137", "ISC", "Lucide, Lucide contributors"),
    "iconoir": ("1.2.11", "MIT", "Iconoir, Luca Burgio"),
    "ri": ("1.2.10", "Apache-2.0", "Remix Icon, Remix Design"),
    "boxicons": ("1.2.0", "MIT", "Boxicons, Boxicons"),
    "streamline-ultimate": ("1.2.2", "CC-BY-4.0", "Ultimate, Streamline"),
    "mdi": ("1.2.3", "Apache-2.0", "Material Design Icons, Pictogrammers"),
    "fa6-solid": ("1.2.4", "CC-BY-4.0", "Font Awesome 6 Solid, Dave Gandy"),
    "temaki": ("1.2.6", "CC0-1.0", "Temaki, Bryan Housel"),
    "pinhead": ("1.2.28", "CC0-1.0", "Pinhead, Quincy Morgan"),
    "game-icons": ("1.2.4", "CC-BY-3.0", "Game Icons, GameIcons contributors"),
    "healthicons": ("1.2.13", "MIT", "Health Icons, Resolve to Save Lives"),
    "streamline": ("1.2.5", "CC-BY-4.0", "Streamline, Streamline"),
    "streamline-plump-color": ("1.2.2", "CC-BY-4.0", "Plump Color, Streamline"),
    "streamline-flex-color": ("1.2.2", "CC-BY-4.0", "Flex Color, Streamline"),
    "streamline-ultimate-color": ("1.2.2", "CC-BY-4.0", "Ultimate Color, Streamline"),
    "streamline-freehand-color": ("1.2.2", "CC-BY-4.0", "Freehand Color, Streamline"),
    "streamline-freehand": ("1.2.1", "CC-BY-4.0", "Freehand, Streamline"),
    "streamline-kameleon-color": ("1.2.2", "CC-BY-4.0", "Kameleon Color, Streamline"),
    "streamline-cyber-color": ("1.2.2", "CC-BY-4.0", "Cyber Color, Streamline"),
    "fluent-color": ("1.2.21", "MIT", "Fluent UI System Color, Microsoft Corporation"),
    "flat-color-icons": ("1.2.3", "MIT", "Flat Color Icons, Icons8"),
    "meteocons": ("1.2.4", "MIT", "Meteocons, Bas Milius"),
    "marketeq": ("1.2.2", "MIT", "Marketeq, Marketeq"),
    "pixelarticons": ("1.2.9", "MIT", "Pixelarticons, Gerrit Halfmann"),
    "dinkie-icons": ("1.2.0", "MIT", "Dinkie Icons, atelierAnchor"),
    "streamline-pixel": ("1.2.0", "CC-BY-4.0", "Streamline Pixel, Streamline"),
}
Role = Literal["train", "unseen"]


@dataclass(frozen=True)
class IconSet:
    """Pictures of one look.

    package: npm package; pattern: which of its icons, with the name as its first group.
    words: of its look, its own name last; captions begin with one of these, or end in it; none: bare names (Noto).
    weight: how often the UNet sees each of its pictures beside one of most sets.
    role: "unseen" sets are kept from the UNet and the text encoder altogether.
    all_names: every icon is a thing; otherwise `things` decides.
    """

    package: str
    words: tuple[str, ...] = ()
    weight: float = 1.0
    pattern: str = r"(.+)"
    role: Role = "train"
    all_names: bool = False

    def name(self, icon: str) -> str | None:
        """The thing's name in an icon's: "slice of pizza"; None if the set does not take it."""
        if self.all_names and re.search(EMOJI_VARIANTS, icon) and icon not in KEPT:
            return None
        if self.all_names and self.words and re.search(SIGN, icon):  # Noto keeps them, as prompts know them
            return None
        if (found := re.fullmatch(self.pattern, icon)) is None:
            return None
        return re.sub(r"(-\d+)+$", "", found[1]).replace("-", " ")


KEPT = {"chequered-flag", "pirate-flag", "white-flag", "black-flag", "triangular-flag", "rainbow-flag"}
WEIGHTS = "thin|light|bold|fill|duotone"
SOLAR = "bold|linear|outline|broken|bold-duotone|line-duotone"
PIXEL = (  # streamline-pixel puts a category before each name
    r"(?:pet-animals|food-drink(?:-desert)?|ecology|weather|health|shopping-shipping|beauty-body-care|transportation|"
    r"travel-tour|travel-places|music|entertainment-events-hobbies|photography|school-science|business-products|"
    r"building-real-estate|clothes|sports?|phone|romance)-(.+)"
)
SIGN = r"(^|-)(arrow|button|sign|square|diamond|circle|mark|symbol|division|multiply|plus|minus|arrows)$|^input-|oclock$"
SETS = {
    # colour emoji: the same names in six looks; a bare name means Noto
    "noto": IconSet("noto", weight=8, all_names=True),
    "noto-v1": IconSet("noto-v1", ("old round emoji", "old noto"), 1.8, all_names=True),
    "fluent-3d": IconSet("fluent-emoji", ("glossy 3d", "3d", "fluent 3d"), 2.7, all_names=True),
    "fluent-flat": IconSet("fluent-emoji-flat", ("flat gradient", "fluent flat"), 1.8, all_names=True),
    "twemoji": IconSet("twemoji", ("flat", "flat colour", "twemoji"), 2.7, all_names=True),
    "emojione": IconSet("emojione", ("soft shaded", "emojione"), 1.8, all_names=True),
    # thin to thick lines, solid, two tones
    "ph-thin": IconSet("ph", ("thin line", "phosphor thin"), 1.5, r"(.+)-thin"),
    "ph-regular": IconSet("ph", ("line", "phosphor line"), pattern=rf"(?!.*-(?:{WEIGHTS})$)(.+)"),
    "ph-bold": IconSet("ph", ("bold line", "phosphor bold"), pattern=r"(.+)-bold"),
    "ph-fill": IconSet("ph", ("solid black", "phosphor solid"), 1.5, r"(.+)-fill"),
    "ph-duotone": IconSet("ph", ("line with grey", "phosphor duotone"), pattern=r"(.+)-duotone"),
    "solar-linear": IconSet("solar", ("line", "solar line"), pattern=r"(?!.*-duotone$)(.+)-linear"),
    "solar-broken": IconSet("solar", ("broken line", "solar broken"), pattern=r"(.+)-broken"),
    "solar-bold": IconSet("solar", ("solid black", "solar solid"), pattern=r"(.+)-bold"),
    "solar-duotone": IconSet("solar", ("two grey tones", "solar duotone"), pattern=r"(.+)-bold-duotone"),
    "icon-park-outline": IconSet("icon-park-outline", ("line", "icon park line")),
    "icon-park-solid": IconSet("icon-park-solid", ("solid black", "icon park solid")),
    "icon-park-twotone": IconSet("icon-park-twotone", ("line with grey", "icon park two-tone")),
    "mingcute-line": IconSet("mingcute", ("line", "mingcute line"), pattern=r"(.+)-line"),
    "mingcute-fill": IconSet("mingcute", ("solid black", "mingcute solid"), pattern=r"(.+)-fill"),
    "remix-line": IconSet("ri", ("line", "remix line"), pattern=r"(.+)-line"),
    "remix-fill": IconSet("ri", ("solid black", "remix solid"), pattern=r"(.+)-fill"),
    "boxicons": IconSet("boxicons", ("line", "boxicons line"), pattern=r"(?!.*-filled$)(.+)"),
    "boxicons-filled": IconSet("boxicons", ("solid black", "boxicons solid"), pattern=r"(.+)-filled"),
    "ultimate-line": IconSet(
        "streamline-ultimate", ("thin line", "ultimate line"), pattern=r"(?!.*-bold$)(.+)"
    ),
    "ultimate-bold": IconSet("streamline-ultimate", ("solid black", "ultimate solid"), pattern=r"(.+)-bold"),
    "hugeicons": IconSet("hugeicons", ("thin line", "huge icons")),
    "tabler": IconSet("tabler", ("line", "tabler line"), pattern=r"(?!.*-filled$)(.+)"),
    "tabler-filled": IconSet("tabler", ("solid black", "tabler solid"), pattern=r"(.+)-filled"),
    "lucide": IconSet("lucide", ("line", "lucide")),
    "iconoir": IconSet("iconoir", ("thin line", "iconoir"), pattern=r"(?!.*-solid$)(.+)"),
    "mdi": IconSet("mdi", ("solid black", "material"), pattern=r"(?!.*-(?:outline|variant)$)(.+)"),
    "mdi-outline": IconSet("mdi", ("outline", "material outline"), pattern=r"(.+)-outline"),
    "font-awesome": IconSet("fa6-solid", ("solid black", "font awesome")),
    "pinhead": IconSet("pinhead", ("small solid black", "pinhead")),
    "temaki": IconSet("temaki", ("small solid black", "temaki")),
    "healthicons": IconSet(
        "healthicons", ("solid black", "health icons"), pattern=r"(?!.*-(?:outline|24px)$)(.+)"
    ),
    "healthicons-outline": IconSet(
        "healthicons", ("thick outline", "health outline"), pattern=r"(.+)-outline"
    ),
    "game-icons": IconSet("game-icons", ("engraved black", "dramatic black", "game icons")),
    "streamline": IconSet("streamline", ("line", "streamline line"), pattern=r"(?!.*-(?:solid|remix)$)(.+)"),
    "streamline-solid": IconSet("streamline", ("solid black", "streamline solid"), pattern=r"(.+)-solid"),
    # colour
    "plump": IconSet(
        "streamline-plump-color", ("blue line with colour", "plump"), pattern=r"(?!.*-flat$)(.+)"
    ),
    "plump-flat": IconSet("streamline-plump-color", ("flat blue", "plump flat"), pattern=r"(.+)-flat"),
    "flex": IconSet(
        "streamline-flex-color", ("blue line with light blue", "flex"), pattern=r"(?!.*-flat$)(.+)"
    ),
    "ultimate": IconSet("streamline-ultimate-color", ("thin line with colour", "ultimate")),
    "freehand": IconSet("streamline-freehand-color", ("hand drawn colour", "freehand")),
    "freehand-line": IconSet("streamline-freehand", ("hand drawn line", "freehand line")),
    "cyber": IconSet("streamline-cyber-color", ("line with pink and blue", "cyber")),
    "fluent-color": IconSet(
        "fluent-color", ("colour gradient", "fluent colour"), pattern=r"(.+)-(?:48|32|28|24)"
    ),
    "meteocons": IconSet("meteocons", ("weather gradient", "meteocons"), pattern=r"(?!.*-fill$)(.+)"),
    "marketeq": IconSet("marketeq", ("thick line with colour", "marketeq")),
    # pixels
    "pixelarticons": IconSet("pixelarticons", ("pixel art line", "pixelart"), pattern=r"(?!.*-sharp$)(.+)"),
    "dinkie": IconSet("dinkie-icons", ("pixel art", "dinkie"), pattern=r"(?!.*-(?:small|filled)$)(.+)"),
    "dinkie-filled": IconSet(
        "dinkie-icons", ("solid pixel art", "dinkie solid"), pattern=r"(?!.*-small)(.+)-filled"
    ),
    # kept from the UNet and the text encoder
    "fluent-emoji-high-contrast": IconSet("fluent-emoji-high-contrast", role="unseen", all_names=True),
    "streamline-emojis": IconSet("streamline-emojis", role="unseen", all_names=True),
    "fxemoji": IconSet("fxemoji", role="unseen", all_names=True),
    "emojione-monotone": IconSet("emojione-monotone", role="unseen", all_names=True),
    "icon-park": IconSet("icon-park", role="unseen"),
    "kameleon": IconSet("streamline-kameleon-color", role="unseen", pattern=r"(?!.*-duo$)(.+)"),
    "streamline-pixel": IconSet("streamline-pixel", role="unseen", pattern=PIXEL),
    "flat-color-icons": IconSet("flat-color-icons", role="unseen"),
}

LOOKS = {  # made from Noto's pictures by looks.py: words and weight
    "noto-ink": (("black ink", "ink"), 1.6),
    "noto-contour": (("contour", "colouring book"), 1.6),
    "noto-stencil": (("stencil", "black with white lines"), 1.6),
    "noto-blue-on-cream": (("blue on cream",), 0.5),
    "noto-white-on-purple": (("white on purple",), 0.5),
    "noto-green-on-black": (("green on black",), 0.5),
    "noto-brown-on-pink": (("brown on pink",), 0.5),
}
RARE = 0.12  # weight of a picture whose name is rare (icons.py) beside one of a common name
EVERYDAY = 4.0  # what is added for a picture whose name is one of every day: two examples in three show one
VALIDATED = ("noto", "twemoji", "fluent-3d", "ph-fill", "ph-thin", "mdi", "game-icons")


def phrases(words: tuple[str, ...]) -> dict[str, float]:
    """What captions of a look are: "thin line house" three times in four, "house, thin line" otherwise.

    Words that come before a name change how the text encoder reads it (it reads from left to right), so that the bare
    name keeps its own meaning, Noto's look.
    """
    return {f"{word} [filewords]": 3.0 for word in words} | {f", {word}": 1.0 for word in words}


def folders(icons: Path) -> dict[str, list[dict[str, object]]]:
    """The `data` folders of diffusion.yaml: each gets a share by its pictures and their weight."""
    looks = {key: (one.words, one.weight) for key, one in SETS.items() if one.role == "train"} | LOOKS
    train, held_out = [], []
    for key, (words, often) in looks.items():
        captions = {"append": phrases(words)} if words else {}
        for split, weight in (("train", 1.0), ("rare", RARE), ("everyday", EVERYDAY)):
            folder = icons / key / split
            if folder.exists():
                pictures = sum(1 for _ in folder.glob("*.png"))
                share = round(pictures * weight * often, 1)
                train.append({"path": folder.as_posix(), "share": share, **captions})
        if key in VALIDATED:
            held_out.append({"path": f"{icons.as_posix()}/{key}/held_out", **captions})
    return {"folders": train, "held_out": held_out}
