"""What the words of a draft will do: those the model never saw, and a trigger word that no caption gets."""

from nicegui import ui

from hyperbrush.app.messages import Messages
from hyperbrush.app.model.service import known_words
from hyperbrush.app.train.draft import Draft
from hyperbrush.app.train.places import inside
from hyperbrush.app.ui.parts import Unseen
from hyperbrush.app.workspace import Workspace
from hyperbrush.errors import UserError


def sentences(draft: Draft, workspace: Workspace) -> list[str]:
    """What is put around the captions, with the trigger word (else the name) in it; none for captions as they are."""
    from hyperbrush.ldm.data.templates import BUNDLED, read_templates
    from hyperbrush.training.attention.config import preset

    named = preset(str(draft.values["presets"])).get("templates", "")
    source = str(draft.get("training.templates", named) or "")
    try:
        lines = read_templates(source if source in BUNDLED else inside(workspace, source)) if source else ()
    except UserError:  # the check before the start names it
        return []
    word = str(draft.get("training.trigger") or draft.get("name") or "")
    return [line.replace("[name]", word).replace("[filewords]", " ") for line in lines]


def show(t: Messages, draft: Draft, workspace: Workspace) -> None:
    """Both warnings, following the draft."""
    idle = ui.label(t("train.trigger_idle")).classes("warn small").props("role=status")
    unseen = Unseen(t)

    def look() -> None:
        said = sentences(draft, workspace)
        prompts = draft.get("training.prompts")
        known = known_words(workspace, str(draft.get("model") or ""))
        unseen.show(known, [*said, *(map(str, prompts) if isinstance(prompts, list) else ())])
        idle.set_visibility(bool(draft.get("training.trigger")) and not said)

    look()
    draft.on_change.append(look)
