import numpy as np
import pytest
from PIL import Image

from hyperbrush.errors import UserError
from hyperbrush.ldm.data import pictures

BLUE = (0, 0, 255)


def test_transparent_pictures_show_the_background(paint):
    clear = paint("rgba.png", mode="RGBA", colour=(255, 0, 0, 0))
    assert pictures.read(clear, BLUE).getpixel((3, 3)) == BLUE
    half = paint("la.png", mode="LA", colour=(255, 0))
    assert pictures.read(half, BLUE).getpixel((3, 3)) == BLUE


def test_palette_and_rgb_transparency(tmp_path):
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putpixel((0, 0), 1)
    palette.save(tmp_path / "p.png", transparency=0)
    shown = pictures.read(tmp_path / "p.png", BLUE)
    assert (shown.getpixel((0, 0)), shown.getpixel((2, 2))) == ((0, 255, 0), BLUE)
    Image.new("RGB", (4, 4), (9, 9, 9)).save(tmp_path / "t.png", transparency=(9, 9, 9))
    assert pictures.read(tmp_path / "t.png", BLUE).getpixel((2, 2)) == BLUE


def test_exif_orientation_is_honoured(paint):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = paint("turned.jpg", size=(32, 16), exif=exif)
    assert pictures.look(path)[0] == pictures.Look(16, 32)
    assert pictures.read(path, BLUE).size == (16, 32)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK"])
def test_modes_become_rgb(paint, mode):
    suffix = "jpg" if mode == "CMYK" else "png"
    assert pictures.read(paint(f"m.{suffix}", mode=mode), BLUE).mode == "RGB"


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    Image.fromarray(np.full((4, 4), 128 * 256, np.uint16)).save(tmp_path / "deep.png")
    assert pictures.read(tmp_path / "deep.png", BLUE).getpixel((0, 0)) == (128, 128, 128)


def test_float_pixels_are_refused(tmp_path):
    Image.new("F", (4, 4), 0.5).save(tmp_path / "f.tiff")
    with pytest.raises(UserError, match=r"f\.tiff.*Pillow mode F.*8 bits"):
        pictures.read(tmp_path / "f.tiff", BLUE)


def test_colours():
    assert pictures.background_colour("#ff8800") == (255, 136, 0)
    with pytest.raises(UserError, match="'blu'; expected a colour"):
        pictures.background_colour("blu")


def test_look_tells_size_and_transparency(paint):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = paint("turned.jpg", size=(400, 200), exif=exif)
    for small in (0, 64):
        found, shown = pictures.look(turned, small)
        assert (found.width, found.height, found.transparent) == (200, 400, False)
        assert (shown is None) == (small == 0)
    assert shown.size == (32, 64)
    assert pictures.look(paint("clear.png", mode="RGBA", colour=(9, 9, 9, 254)))[0].transparent
    assert not pictures.look(paint("opaque.png", mode="RGBA", colour=(9, 9, 9, 255)))[0].transparent


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_small_look_still_reads_a_jpeg_to_its_end(paint, share):
    path = paint("cut.jpg", size=(512, 512), quality=90)
    pictures.look(path, 64)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(OSError, match="truncated"):
        pictures.look(path, 64)


def test_alpha(paint):
    assert pictures.decode_alpha(paint("a.png").read_bytes()) is None
    alpha = pictures.decode_alpha(paint("b.png", mode="LA", colour=(9, 77)).read_bytes())
    assert (alpha.mode, alpha.getpixel((3, 3))) == ("L", 77)
