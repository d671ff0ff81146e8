"""The mutants of tests/mutants fit the code as it is: each applies, and the tests that it names are there."""

from collections import Counter

import pytest

from tests.mutants.listed import AREAS, MUTANTS, ROOT


def test_every_mutant_applies():
    """Its old text is in the file exactly once, and the new one is another."""
    for mutant in MUTANTS:
        assert mutant.applied() and mutant.old != mutant.new, mutant
    first = MUTANTS[0]
    with pytest.raises(ValueError, match="its old text is there 0 times"):
        type(first)(first.file, "nothing", "no such text", "", ()).text()
    with pytest.raises(ValueError, match="it is no Python"):
        type(first)(first.file, "nothing", first.old, "def", ()).text()


def test_every_mutant_has_a_name_and_tests_of_its_own():
    assert not [name for name, n in Counter(map(str, MUTANTS)).items() if n > 1]
    for mutant in MUTANTS:
        for test in mutant.tests:
            file, _, name = test.partition("::")
            text = (ROOT / file).read_text(encoding="utf-8")
            assert not name or f"def {name.partition('[')[0]}(" in text, test
    assert {mutant.area for mutant in MUTANTS} == {*AREAS, "others"}
