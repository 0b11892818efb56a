"""The page as a real browser shows it: whole, in light and dark, without an error or a network.

The pictures are kept in build/report/.
"""

import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image

from hone.report.write import write_report
from hone.runs import Run
from tests.report.ground import browse

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

KEPT = Path(__file__).parents[2] / "build" / "report"
DARK = "--blink-settings=preferredColorScheme=0"


@pytest.fixture(scope="module")
def page(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(trained, tmp_path_factory.mktemp("page") / "report.html")


def picture(
    page: Path, name: str, *options: str, size: tuple[int, int] = (1280, 4800)
) -> np.ndarray:
    """What the browser draws, (H, W, 3) from 0 to 1; kept as build/report/NAME.png."""
    KEPT.mkdir(parents=True, exist_ok=True)
    file = KEPT / f"{name}.png"
    file.unlink(missing_ok=True)
    _, said = browse(page, f"--screenshot={file}", *options, size=size)
    assert said == ""
    print(file)
    return np.asarray(image.imread(file))[..., :3]


def has_colour(pixels: np.ndarray, colour: str, at_least: int) -> bool:
    """True where so many points have this colour, within what a screen's edges blur."""
    wanted = np.array([int(colour[n : n + 2], 16) for n in (1, 3, 5)]) / 255
    return bool((np.abs(pixels - wanted).max(axis=-1) < 0.04).sum() >= at_least)


def test_it_is_drawn_in_light_and_dark(page: Path) -> None:
    light, dark = picture(page, "light"), picture(page, "dark", DARK)
    assert light.shape == dark.shape == (4800, 1280, 3)
    colours = ("#fcfbf8", "#1f5a9e", "#c02f4a"), ("#131416", "#7fb2ee", "#f5899a")
    for pixels, (paper, line, held_out) in zip((light, dark), colours, strict=True):
        assert has_colour(pixels, paper, at_least=2_000_000)
        assert has_colour(pixels, line, at_least=3_000), "curves"
        assert has_colour(pixels, held_out, at_least=300), "held-out dots and lines"
        shades = (pixels * 255).astype(np.int64) @ np.array([65536, 256, 1])
        assert len(np.unique(shades)) > 500
        bands = np.split(pixels, 24)
        assert sum(band.std() > 0.02 for band in bands) >= 20, "no large part of it is blank"


def test_a_phone_shows_all_of_it(page: Path) -> None:
    """Nothing is wider than the screen, but what scrolls by itself."""
    probe = (
        "const d = document.documentElement; d.title = [d.scrollWidth, innerWidth].join(' of ');"
    )
    dom, _ = browse(with_script(page, probe), "--dump-dom", size=(400, 900))
    widths = re.search(r'<html[^>]* title="(\d+) of (\d+)"', dom)
    assert widths and int(widths[1]) == int(widths[2]) <= 500, "a window is 500 wide at least"
    assert picture(page, "phone", size=(400, 2400)).std() > 0.05


def test_the_browser_reads_what_is_written(page: Path) -> None:
    dom, said = browse(page, "--dump-dom")
    assert said == ""
    assert "<title>first · Hone</title>" in dom, "no text of others has run"
    assert "2 of 3 checks passed" in dom and 'id="theme" type="button" aria-label' in dom


def test_hovering_tells_values_and_the_theme_is_kept(page: Path) -> None:
    probe = """
    const plot = document.querySelector("figure .plot"), box = plot.getBoundingClientRect();
    const at = {bubbles: true, clientX: box.right, clientY: box.top + 5};
    plot.dispatchEvent(new PointerEvent("pointermove", at));
    document.getElementById("theme").click();
    document.title = document.documentElement.dataset.theme + localStorage.getItem("hone-theme");
    """
    dom, _ = browse(with_script(page, probe), "--dump-dom")
    assert "<title>darkdark</title>" in dom
    tip = re.search(r'<div id="tip"[^>]*>([^<]+)</div>', dom)
    assert tip and re.search(r"held out  \d\.\d+  at step 64", tip[1]), dom[-400:]


def with_script(page: Path, script: str) -> Path:
    """The page with one more script, and without the policy that keeps others' from running."""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    changed = page.with_name("probed.html")
    changed.write_text(text.replace("</body>", f"<script>{script}</script></body>"))
    return changed
