"""Arguments are refused by name, with what came."""

import pytest

from iad_ext.checks import check_flag, check_mapping, check_name, check_number, check_whole


@pytest.mark.parametrize("value", [None, "1", True, float("nan"), float("inf"), 10**400, [1.0], 1j])
def test_what_is_no_finite_number_is_refused(value):
    with pytest.raises(ValueError, match="tau must be a finite number, got"):
        check_number("tau", value)


def test_a_number_s_range_is_said():
    check_number("tau", 0.5, above=0, at_most=1)
    with pytest.raises(ValueError, match="tau must be above 0 and at most 1, got 0"):
        check_number("tau", 0, above=0, at_most=1)
    with pytest.raises(ValueError, match="beta must be at least 0, got -1"):
        check_number("beta", -1, at_least=0)


@pytest.mark.parametrize("value", [None, "3", True, 1.5, [3]])
def test_what_is_no_integer_is_refused(value):
    with pytest.raises(TypeError, match="steps must be an integer of at least 1; got"):
        check_whole("steps", value, at_least=1)


def test_an_integer_s_range_is_said():
    check_whole("steps", 1, at_least=1)
    with pytest.raises(ValueError, match="holdout must be at least 1; got 0; leave it out"):
        check_whole("holdout", 0, at_least=1, hint="; leave it out")
    with pytest.raises(ValueError, match=r"seed must be less than 2\^63; got 9223372036854775808"):
        check_whole("seed", 2**63, at_least=0)


@pytest.mark.parametrize("value", [None, 0, 1, "yes", []])
def test_a_flag_is_true_or_false(value):
    check_flag("gate", True)
    with pytest.raises(TypeError, match="gate must be True or False, got"):
        check_flag("gate", value)


@pytest.mark.parametrize("value", [None, 5, b"x", []])
def test_a_name_is_a_string(value):
    check_name("name", "iad1")
    with pytest.raises(TypeError, match="name must be a name, as a string; got"):
        check_name("name", value)


@pytest.mark.parametrize("value", [None, 5, "label=1", ["label"], {1: 2}])
def test_a_mapping_is_from_names(value):
    check_mapping("weights", {"label": 1}, '{"label": 0.5}')
    with pytest.raises(TypeError, match="weights must be a mapping from names, such as"):
        check_mapping("weights", value, '{"label": 0.5}')
