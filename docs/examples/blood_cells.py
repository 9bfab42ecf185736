"""A folder of pictures like those of stained blood cells, with a long tail: seven classes, 900 down to 25 images.

    python docs/examples/blood_cells.py cells

makes cells/train and cells/test, and in each a folder of 28x28 PNG files for each class; the test part has as many
images of every class. The pictures are drawn by this file, from no data at all: they show a pale ground with red cells
and one cell of the class in the middle, whose size, nucleus and grains differ as those of the real ones do. They serve
to try fedmutual on something that looks like a medical set, and for nothing else.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIZE, ZOOM = 28, 8
"""Pixels of a side, and how much larger a picture is drawn before it is made smooth."""

COUNTS = {
    "neutrophil": 900,
    "lymphocyte": 500,
    "monocyte": 280,
    "eosinophil": 155,
    "platelet": 85,
    "erythroblast": 46,
    "basophil": 25,
}
"""Training images of each class."""

TEST = 60
"""Test images of each class."""

Colour = tuple[int, int, int]
Point = tuple[float, float]
GROUND, RED_CELL, RED_MIDDLE = (238, 226, 220), (226, 178, 170), (234, 204, 196)
NUCLEUS, PALE, BLUE, GREY = (98, 52, 132), (226, 200, 214), (170, 184, 224), (196, 186, 212)
ORANGE, INK = (224, 122, 88), (62, 30, 96)


class Picture:
    """One picture; lengths are shares of its side."""

    def __init__(self, rng: np.random.Generator):
        self.rng, self.side = rng, SIZE * ZOOM
        self.image = Image.new("RGB", (self.side, self.side), self.varied(GROUND, 5))
        self.draw = ImageDraw.Draw(self.image)

    def varied(self, colour: Colour, by: float = 9) -> Colour:
        """`colour`, a little lighter or darker, as stains are."""
        shift = self.rng.normal(0, by) + self.rng.normal(0, by / 3, 3)
        red, green, blue = (int(np.clip(value, 0, 255)) for value in np.array(colour) + shift)
        return red, green, blue

    def blob(self, middle: Point, radius: float, colour: Colour, uneven: float = 0.06) -> None:
        """A disc whose edge waves a little."""
        angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        waves = sum(self.rng.normal(0, uneven / k) * np.cos(k * angles + self.rng.uniform(0, 7)) for k in (2, 3, 4))
        radii = radius * (1 + waves) * self.side
        x, y = (centre * self.side for centre in middle)
        edge = zip(x + radii * np.cos(angles), y + radii * np.sin(angles), strict=True)
        self.draw.polygon([(float(a), float(b)) for a, b in edge], fill=colour)

    def near(self, middle: Point, within: float) -> Point:
        """A point not farther than `within` from `middle`."""
        angle, distance = self.rng.uniform(0, 2 * np.pi), within * np.sqrt(self.rng.uniform())
        return middle[0] + distance * np.cos(angle), middle[1] + distance * np.sin(angle)

    def red_cells(self) -> None:
        """Three to six at the rim."""
        for angle in self.rng.uniform(0, 2 * np.pi, self.rng.integers(3, 7)):
            distance = self.rng.uniform(0.45, 0.62)
            middle = 0.5 + distance * np.cos(angle), 0.5 + distance * np.sin(angle)
            self.blob(middle, self.rng.uniform(0.13, 0.17), self.varied(RED_CELL))
            self.blob(middle, 0.06, self.varied(RED_MIDDLE, 4))

    def grains(self, middle: Point, within: float, count: int, colour: Colour, radius: float) -> None:
        for _ in range(count):
            self.blob(self.near(middle, within), radius, self.varied(colour))

    def smooth(self) -> Image.Image:
        blurred = self.image.filter(ImageFilter.GaussianBlur(ZOOM * 0.5))
        small = np.asarray(blurred.resize((SIZE, SIZE), Image.Resampling.BOX)).astype(float)
        return Image.fromarray((small + self.rng.normal(0, 2, small.shape)).clip(0, 255).astype(np.uint8))


def lobes(picture: Picture, middle: Point, count: int, radius: float, apart: float) -> None:
    """A nucleus of several lobes on an arc."""
    turn = picture.rng.uniform(0, 2 * np.pi)
    colour = picture.varied(NUCLEUS)
    for k in range(count):
        angle = turn + (k - (count - 1) / 2) * 1.25
        picture.blob((middle[0] + apart * np.cos(angle), middle[1] + apart * np.sin(angle)), radius, colour)


def cell(picture: Picture, kind: str, middle: Point) -> None:
    """The cell that makes the class; each case is its size and colour, its nucleus, its grains."""
    size = picture.rng.uniform(0.93, 1.07)
    match kind:
        case "neutrophil":
            picture.blob(middle, 0.31 * size, picture.varied(PALE))
            lobes(picture, middle, int(picture.rng.integers(3, 5)), 0.1 * size, 0.135)
        case "lymphocyte":
            picture.blob(middle, 0.24 * size, picture.varied(BLUE))
            picture.blob(picture.near(middle, 0.02), 0.2 * size, picture.varied(NUCLEUS))
        case "monocyte":
            picture.blob(middle, 0.36 * size, picture.varied(GREY), uneven=0.1)
            inside = picture.near(middle, 0.03)
            picture.blob(inside, 0.23 * size, picture.varied(NUCLEUS), uneven=0.1)
            turn = picture.rng.uniform(0, 2 * np.pi)
            notch = inside[0] + 0.2 * np.cos(turn), inside[1] + 0.2 * np.sin(turn)
            picture.blob(notch, 0.11 * size, picture.varied(GREY, 4))
        case "eosinophil":
            picture.blob(middle, 0.31 * size, picture.varied(PALE))
            picture.grains(middle, 0.27 * size, 60, ORANGE, 0.03)
            lobes(picture, middle, 2, 0.12 * size, 0.13)
        case "platelet":
            picture.blob(middle, 0.09 * size, picture.varied((186, 150, 206)), uneven=0.15)
            picture.grains(middle, 0.05, 5, NUCLEUS, 0.018)
        case "erythroblast":
            picture.blob(middle, 0.2 * size, picture.varied((196, 168, 190)))
            picture.blob(picture.near(middle, 0.02), 0.115 * size, picture.varied(INK))
        case "basophil":
            picture.blob(middle, 0.28 * size, picture.varied((204, 176, 214)))
            lobes(picture, middle, 2, 0.13 * size, 0.09)
            picture.grains(middle, 0.25 * size, 38, INK, 0.032)


def main(folder: Path, seed: int = 0) -> None:
    for kind, count in COUNTS.items():
        for part, numbers in {"train": range(count), "test": range(count, count + TEST)}.items():
            place = folder / part / kind
            place.mkdir(parents=True)
            for number in numbers:
                picture = Picture(np.random.default_rng([seed, *kind.encode(), number]))
                picture.red_cells()
                cell(picture, kind, picture.near((0.5, 0.5), 0.04))
                picture.smooth().save(place / f"{number:04d}.png")
    print(f"{folder}: {sum(COUNTS.values()):,} training and {TEST * len(COUNTS)} test images of {len(COUNTS)} classes")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python docs/examples/blood_cells.py FOLDER")
    main(Path(sys.argv[1]))
