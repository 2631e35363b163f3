"""The paper's numbers are read as printed, and asked for without doubt."""

import pytest

from iad_ext import paper


def test_all_tables_are_there():
    assert paper.tables() == tuple(f"table{number}" for number in range(2, 15))
    sizes = {name: len(paper.rows(name)) for name in paper.tables()}
    assert sizes == {
        "table2": 20, "table3": 20, "table4": 10, "table5": 10, "table6": 10, "table7": 2, "table8": 6,
        "table9": 10, "table10": 5, "table11": 10, "table12": 7, "table13": 4, "table14": 4,
    }  # fmt: skip


def test_a_row_is_found_by_what_tells_it_from_the_others():
    assert paper.numbers("table2", data="cifar10", teacher="at", method="IAD-I")["aa"] == 48.66
    assert paper.numbers("table5", method="IAD-II", beta=0.5)["pgd20"] == 52.53
    assert paper.numbers("table14", method="AKD2") == {"seconds_per_epoch": 147.1, "gpu_mib": 2397}


def test_a_doubtful_question_is_refused():
    with pytest.raises(ValueError, match=r"table5 of the paper has 2 rows with beta=0\.5; expected one"):
        paper.numbers("table5", beta=0.5)
    with pytest.raises(ValueError, match="has no rows with"):
        paper.numbers("table5", beta=7)
    with pytest.raises(ValueError, match="did you mean 'table14'"):
        paper.rows("tables14")


def test_percentages_are_percentages_and_attacks_do_not_help():
    for name in paper.tables()[:-1]:
        for row in paper.rows(name):
            numbers = row["numbers"]
            assert 0 < numbers["pgd20"] < numbers["natural"] < 100
            assert numbers.get("aa", 0) < numbers["pgd20"]
