"""`make prove` takes each cure out by its text; here, that the text is still there. The proof itself takes a minute."""

from pathlib import Path

import pytest

from tools.prove import CURES, Cure

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("cure", CURES, ids=lambda cure: cure.name)
def test_the_text_of_each_cure_stands_where_it_is_looked_for(cure: Cure) -> None:
    for place in cure.places:
        assert (ROOT / place.file).read_text(encoding="utf-8").count(place.old) == 1
    file, _, name = cure.test.partition("::")
    assert f"def {name.partition('[')[0]}(" in (ROOT / file).read_text(encoding="utf-8")
