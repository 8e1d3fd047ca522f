"""Classes by the names that people type."""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path
from typing import Any

import httpx
import pytest

from msf_server.class_names import label_id
from msf_server.errors import InvalidRequest
from tests.server.fake_worker import FASHION, FakeWorker

ROOT = Path(__file__).parents[2]
LABELS = (
    *("red apple", "t shirt", "woman s hat", "mrs claus", "thumbs up", "woman health worker", "red heart"),
    *("woman and man holding hands", "keycap 1", "café crème", "version 1.5", "version 15", "telephone", "C++", "C"),
)


def class_of(name: str, labels: tuple[str, ...] = LABELS) -> str:
    return labels[label_id(name, FASHION.model_copy(update={"labels": labels}))]


@pytest.mark.parametrize(
    ("name", "label"),
    [
        *((name, "red apple") for name in (" Red  Apple ", "red-apple", "RED_APPLE", "RedApple", "redapple")),
        *(
            (name, "red apple")
            for name in (":red_apple:", "“red apple”", "'Red Apple'", "red\u00a0apple", "`red apple`")
        ),
        *(
            (name, "red apple")
            for name in ("red\tapple\n", "red\u200bapple", "\ufeffred apple", "ｒｅｄ　ａｐｐｌｅ", "réd apple")
        ),
        *((name, "red apple") for name in ("🍎", " 🍎 ", "🍎\ufe0f", "🍎\ufe0e")),
        *((name, "t shirt") for name in ("T-Shirt", "tshirt", "t.shirt", "t‑shirt", "T—shirt")),
        *((name, "woman s hat") for name in ("woman's hat", "Woman’s hat", "womans-hat", "👒")),
        ("Mrs. Claus", "mrs claus"),
        *((name, "thumbs up") for name in ("👍", "👍🏽", "👍\U0001f3ff")),
        *((name, "woman health worker") for name in ("👩‍⚕️", "👩🏽‍⚕️", "👩🏽‍⚕")),
        *((name, "red heart") for name in ("❤", "❤️")),
        *((name, "woman and man holding hands") for name in ("👫", "👫🏽", "👩🏻‍🤝‍👨🏿")),
        *((name, "keycap 1") for name in ("1️⃣", "keycap: 1")),
        *((unicodedata.normalize(form, "Café Crème"), "café crème") for form in ("NFC", "NFD", "NFKC", "NFKD")),
        ("cafe creme", "café crème"),
        ("Version-1.5", "version 1.5"),
        ("version15", "version 15"),
        ("☎️", "telephone"),
        ("c++", "C++"),
        ("c", "C"),
        ("3", "mrs claus"),
        (" 03 ", "mrs claus"),
    ],
)
def test_a_name_is_read_as_people_type_it(name: str, label: str) -> None:
    assert class_of(name) == label


@pytest.mark.parametrize(
    "name",
    [
        *(
            "a red apple",
            "red apple pie",
            "🍎🍎",
            "🍏",
            "red\0apple",
            "red|apple",
            "",
            " ",
            "-",
            "’",
            "\ufe0f",
            "\U0001f3fd",
        ),
        *("-3", "+3", "3.0", "²", "３", "٣", "15.0", "1" * 5000, "\ud800", "हिन्दी"),
    ],
)
def test_no_other_name_is_taken_for_a_class(name: str) -> None:
    with pytest.raises(InvalidRequest, match="Unknown class") as raised:
        class_of(name)
    assert raised.value.detail.isascii()


def test_every_image_of_the_shipped_model_may_be_requested_by_its_emoji() -> None:
    labels = tuple(json.loads((ROOT / "model_repo/emoji/labels.json").read_text()))
    names = json.loads((ROOT / "server/msf_server/emoji_names.json").read_text())
    drawn = {emoji: name for emoji, name in names.items() if name in labels}
    assert len({*drawn.values()}) > 1700
    assert {emoji: class_of(f" {emoji}\ufe0f", labels) for emoji in drawn} == drawn


def test_a_near_miss_names_the_closest() -> None:
    for name in ("a red apple", "read apple", "🍏"):
        with pytest.raises(InvalidRequest, match=re.escape('Closest: "red apple"')):
            class_of(name)


@pytest.mark.parametrize(
    ("name", "labels", "label"),
    [
        ("red apple", ("Red-Apple", "red apple"), "red apple"),  # as it is, first
        ("RED APPLE", ("red-apple", "red apple"), "red apple"),  # then in any case
        ("red_apple", ("red-apple", "red apple"), "red-apple"),  # then the lowest id
        ("🍎", ("red apple", "🍎"), "🍎"),
        ("red apple", ("🍏", "🍎"), "🍎"),
        ("1", ("2", "1"), "1"),  # a name before an id
        ("1", ("²", "½"), "½"),
        ("か", ("が", "か"), "か"),
        ("и", ("й", "и"), "и"),
        ("का", ("कि", "का"), "का"),
    ],
)
def test_an_ambiguous_name_has_one_reading(name: str, labels: tuple[str, ...], label: str) -> None:
    assert class_of(name, labels) == label


@pytest.mark.parametrize(("name", "labels"), [("か", ("が",)), ("и", ("й",)), ("का", ("कि",)), ("1.5", ("15x", "15"))])
def test_marks_that_make_another_letter_are_not_ignored(name: str, labels: tuple[str, ...]) -> None:
    with pytest.raises(InvalidRequest):
        class_of(name, labels)


@pytest.mark.parametrize("prompt", ["ankle-boot", "ANKLE_BOOT", "“Ankle boot”", "9", 9, 9.0])
async def test_every_api_reads_names_alike(client: httpx.AsyncClient, worker: FakeWorker, prompt: str | float) -> None:
    data = [str(prompt)] if isinstance(prompt, str) else [9]
    label: dict[str, Any] = {"name": "label", "shape": [1], "datatype": "BYTES", "data": data}
    if not isinstance(prompt, str):
        label["datatype"] = "INT32"
    answers = [
        await client.post("/v1/images/generations", json={"prompt": prompt}),
        await client.post("/v1/jobs", json={"prompt": prompt}),
        await client.post("/v2/models/fashion/infer", json={"inputs": [label]}),
    ]
    assert [answer.status_code for answer in answers] == [200, 202, 200]
    answer = await client.get(f"/v1/jobs/{answers[1].json()['id']}")
    assert answer.json()["spec"]["label"] == 9
    assert {claim.job.spec.label for claim in worker.claimed} == {9}
