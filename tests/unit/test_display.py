"""La console de l'exercice 1 : tout message se montre, quel qu'il soit."""

from exercice1.display import Table, as_json, as_raw, read

import pytest


@pytest.mark.parametrize("value", [b'{"nom":"\xe9t\xe9"}', b"[" * 100_000, b"1e999", b"", b"\xff\xfe", b'{"a":'])
def test_what_is_not_json_is_shown_as_it_is(value: bytes) -> None:
    """Ni Latin-1, ni cent mille listes emboîtées n'arrêtent la console."""
    record = read(value, {})
    assert record.fields is None
    assert as_raw(record) == value
    assert as_json(record)
    assert len(list(Table().lines([record]))) == 1


def test_a_terminal_runs_nothing_of_a_column_name() -> None:
    """Un nom de colonne, comme une valeur, s'affiche sur une ligne : un terminal n'y exécute rien."""
    record = read(b'{"Prix\\n(EUR)":"1","n\\u001b[31m":"a\\u0007"}', {})
    assert list(Table().lines([record])) == ["Prix\\n(EUR)  n\\x1b[31m", "1            a\\x07"]
