"""Tables of text by hand."""

from repro.text_table import markdown_table, text_table


def test_columns_are_as_wide_as_their_longest_cell_and_a_text_alone_widens_none():
    rows = [("name", "n", "note"), ("a longer line of its own",), ("one", "10", ""), ("three", "7", "odd")]
    assert text_table(rows, "lrl") == ["name    n  note", "a longer line of its own", "one    10", "three   7  odd"]


def test_a_markdown_table_says_how_its_columns_are_aligned():
    assert markdown_table([("what", "n"), ("one", "10")], "lr") == ["| what |   n |", "| ---- | --: |", "| one  |  10 |"]
