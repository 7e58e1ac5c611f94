"""axe finds nothing serious, a phone's width does, the keyboard reaches everything."""

from collections.abc import Callable
from typing import Any

import pytest

from hyperbrush.app.ui import frame

PLACES = [address for _, address, _ in frame.PLACES]
LANGUAGES = [
    ("en-US", "light"),
    pytest.param("en-US", "dark", marks=pytest.mark.slow),
    pytest.param("ko-KR", "dark", marks=pytest.mark.slow),
    pytest.param("zh-CN", "light", marks=pytest.mark.slow),
]


def findings(page: Any) -> list[str]:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    answer = axe.Axe().run(page).response
    return [
        f"{found['impact']} {found['id']}: {node['html'][:160]}"
        for found in answer["violations"]
        if found["impact"] in ("serious", "critical")
        for node in found["nodes"]
    ]


@pytest.mark.parametrize(("locale", "theme"), LANGUAGES)
@pytest.mark.parametrize("path", PLACES)
@pytest.mark.main
def test_axe_finds_nothing_serious(
    app: Any, open_page: Callable[..., Any], path: str, locale: str, theme: str
) -> None:
    page = open_page(app, path, locale=locale, color_scheme=theme)
    page.wait_for_timeout(300)  # transitions of Quasar's fields change colours
    assert not findings(page)


@pytest.mark.parametrize("path", PLACES)
def test_a_phone_needs_no_sideways_scrolling(app: Any, open_page: Callable[..., Any], path: str) -> None:
    page = open_page(app, path, width=390)
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 1
    page.get_by_label("Menu").first.click()  # the menu is behind its button
    page.locator('nav a[href="/runs"]').click()
    page.get_by_role("heading", level=1, name="Runs").wait_for()


@pytest.mark.parametrize("path", PLACES)
def test_the_keyboard_reaches_everything(app: Any, open_page: Callable[..., Any], path: str) -> None:
    page = open_page(app, path)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.classList.contains('skip')")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
    wanted = page.evaluate(
        """() => [...document.querySelectorAll('main button, main a[href], main input, main textarea')]
        .filter(e => e.checkVisibility({checkOpacity: true, checkVisibilityCSS: true}) && !e.disabled && e.tabIndex >= 0
            && e.type != 'file' && e.getClientRects().length).length"""
    )
    seen = set()
    for _ in range(wanted * 2 + 20):
        page.keyboard.press("Tab")
        here = page.evaluate(
            """() => { const e = document.activeElement;
            if (!e.closest('main')) return '';
            const s = getComputedStyle(e), parent = e.closest('.q-field, .q-btn, .q-slider, .q-toggle') || e;
            window.order = window.order || []; if (!order.includes(e)) order.push(e);
            return order.indexOf(e) + 1; }"""
        )
        if here == "" and seen:
            break
        if here:
            seen.add(here)
    assert len(seen) >= wanted


def test_reduced_motion_is_respected(app: Any, open_page: Callable[..., Any]) -> None:
    page = open_page(app, "/runs", reduced_motion="reduce")
    slow = page.evaluate(
        """() => [...document.querySelectorAll('*')].filter(e => parseFloat(getComputedStyle(e).transitionDuration) > 0.01).length"""
    )
    assert slow == 0
