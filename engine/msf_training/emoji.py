"""Colour emoji as class folders: Microsoft's Fluent set as LobeHub packs it for npm, sorted by kind.

    python -m msf_training.emoji --packages data/npm --out data/emoji

reads the two packages as `npm pack` fetches them and writes `<out>/<class>/<picture>--<variant>.webp`. Skin tones are
variants of one picture, so that a held-out picture is held out in every tone.
"""

from __future__ import annotations

import argparse
import json
import re
import tarfile
from collections.abc import Mapping
from pathlib import Path

from msf_training.folder import NAMES_FILE

IMAGES = "lobehub-fluent-emoji-3d-*.tgz"
NAMES = "unicode-emoji-json-*.tgz"
_SKIN_TONES = {f"{code:x}" for code in range(0x1F3FB, 0x1F400)}
_NOT_TOLD_APART = _SKIN_TONES | {"fe0f"}  # the second asks for colour, which all of them are

# In Unicode's order of emoji (CLDR's), kinds follow one another: where each begins, by its first emoji's slug.
STARTS = (
    ("grinning_face", "face"),
    ("smiling_face_with_horns", "monster"),
    ("grinning_cat", "cat face"),
    ("love_letter", "heart"),
    ("kiss_mark", "emotion"),
    ("waving_hand", "hand"),
    ("flexed_biceps", "body part"),
    ("baby", "person"),
    ("person_frowning", "gesture"),
    ("health_worker", "profession"),
    ("baby_angel", "fantasy"),
    ("person_getting_massage", "moving person"),
    ("people_with_bunny_ears", "athlete"),
    ("people_holding_hands", "couple"),
    ("family_man_woman_boy", "family"),
    ("monkey_face", "animal"),
    ("turkey", "bird"),
    ("frog", "reptile"),
    ("spouting_whale", "sea animal"),
    ("snail", "insect"),
    ("bouquet", "flower"),
    ("seedling", "plant"),
    ("grapes", "fruit"),
    ("avocado", "vegetable"),
    ("bread", "dish"),
    ("soft_ice_cream", "sweet"),
    ("baby_bottle", "drink"),
    ("chopsticks", "tableware"),
    ("globe_showing_europe_africa", "landscape"),
    ("stadium", "building"),
    ("fountain", "scenery"),
    ("locomotive", "vehicle"),
    ("bus_stop", "sign"),
    ("anchor", "boat"),
    ("airplane", "aircraft"),
    ("bellhop_bell", "household"),
    ("hourglass_done", "clock"),
    ("new_moon", "moon"),
    ("thermometer", "weather"),
    ("jack_o_lantern", "celebration"),
    ("military_medal", "sport"),
    ("bullseye", "game"),
    ("glasses", "clothing"),
    ("muted_speaker", "music"),
    ("mobile_phone", "electronics"),
    ("magnifying_glass_tilted_left", "household"),
    ("notebook_with_decorative_cover", "book"),
    ("coin", "money"),
    ("envelope", "mail"),
    ("pencil", "stationery"),
    ("locked", "tool"),
    ("syringe", "household"),
    ("atm_sign", "sign"),
    ("up_arrow", "arrow"),
    ("place_of_worship", "symbol"),
    ("shuffle_tracks_button", "button"),
    ("female_sign", "symbol"),
    ("keycap_number_sign", "button"),
    ("red_circle", "shape"),
    ("chequered_flag", "flag"),
)


def picture_of(codes: str) -> str:
    """`1f44b-1f3fb` to `1f44b`: code points without skin tones."""
    return "-".join(code for code in codes.split("-") if code not in _NOT_TOLD_APART)


def classes_of(names: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """A class for each picture; `names` is unicode-emoji-json's data by emoji. Raises ValueError for a lost start."""
    starts = dict(STARTS)
    missing = starts.keys() - {each["slug"] for each in names.values()}
    if missing:
        raise ValueError(f"unicode-emoji-json knows no {', '.join(sorted(missing))}; allowed is a version that does")
    classes, kind = {}, STARTS[0][1]
    for emoji, about in names.items():
        kind = starts.get(about["slug"], kind)
        classes[_codes(emoji)] = kind
    return classes


def names_of(emoji: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Each picture's own name, such as "red apple"; without tones, as `picture_of`."""
    return {_codes(each): about["slug"].replace("_", " ") for each, about in emoji.items()}


def _codes(emoji: str) -> str:
    return picture_of("-".join(f"{ord(character):04x}" for character in emoji))


def write_class_folders(packages: Path, out: Path) -> int:
    """Returns the number of images. Raises FileNotFoundError that says how to fetch the packages."""
    with tarfile.open(_find(packages, NAMES)) as archive:
        listed = archive.extractfile("package/data-by-emoji.json")
        assert listed is not None
        emoji = json.load(listed)
    classes = classes_of(emoji)
    out.mkdir(parents=True, exist_ok=True)
    (out / NAMES_FILE).write_text(json.dumps(names_of(emoji), indent=0), "utf-8")
    num_images = 0
    with tarfile.open(_find(packages, IMAGES)) as archive:
        for member in archive:
            found = re.fullmatch(r"package/assets/([0-9a-f-]+)\.webp", member.name)
            kind = classes.get(picture_of(found[1])) if found else None
            if found is None or kind is None:
                continue
            content = archive.extractfile(member)
            assert content is not None
            folder = out / kind
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{picture_of(found[1])}--{found[1]}.webp").write_bytes(content.read())
            num_images += 1
    return num_images


def _find(packages: Path, pattern: str) -> Path:
    found = sorted(packages.glob(pattern))
    if not found:
        raise FileNotFoundError(f"{packages} has no {pattern}; `make data-emoji` fetches it")
    return found[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description="Sort colour emoji into class folders.")
    parser.add_argument("--packages", type=Path, required=True, help="folder of the two npm packages")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    try:
        num_images = write_class_folders(arguments.packages, arguments.out)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    print(f"{num_images} images in {len(set(dict(STARTS).values()))} classes below {arguments.out}")


if __name__ == "__main__":
    main()
