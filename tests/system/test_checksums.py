"""Checksums of a folder: any change of a byte, and any missing file, is found and named."""

from hypothesis import given
from hypothesis import strategies as st

from amir_grpo.system.checksums import CHECKSUMS, first_damaged, write_checksums


@given(st.data())
def test_one_flipped_bit_is_found_wherever_it_is(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("files")
    contents = data.draw(st.lists(st.binary(min_size=1, max_size=50), min_size=1, max_size=3))
    for number, content in enumerate(contents):
        (folder / f"{number}.bin").write_bytes(content)
    write_checksums(folder)
    assert first_damaged(folder) is None
    (folder / "added later").write_text("is no damage")
    assert first_damaged(folder) is None
    number = data.draw(st.integers(0, len(contents) - 1))
    content = bytearray(contents[number])
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (folder / f"{number}.bin").write_bytes(content)
    assert first_damaged(folder) == f"{number}.bin"
    (folder / f"{number}.bin").unlink()
    assert first_damaged(folder) == f"{number}.bin"


def test_a_folder_without_checksums_is_not_judged_and_a_damaged_record_is_named(tmp_path):
    assert first_damaged(tmp_path) is None
    for spoilt in ("{", "[1]", "3"):
        (tmp_path / CHECKSUMS).write_text(spoilt)
        assert first_damaged(tmp_path) == CHECKSUMS
