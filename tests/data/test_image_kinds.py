"""Images of every orientation, mode and container are taken right or refused by name; what is left out of a folder is counted and said."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from support.image_files import folder_of, noise, refusal, save

pytestmark = pytest.mark.quick

TURNS = Image.Transpose
# What a camera stores of an upright picture: the inverse of the turn that its EXIF orientation asks for.
STORED = {2: TURNS.FLIP_LEFT_RIGHT, 3: TURNS.ROTATE_180, 4: TURNS.FLIP_TOP_BOTTOM, 5: TURNS.TRANSPOSE}
STORED |= {6: TURNS.ROTATE_90, 7: TURNS.TRANSVERSE, 8: TURNS.ROTATE_270}


def write_deep_png(path, colour, values):
    """Writes a PNG of 16 x 16 pixels with 16 bits a channel, which Pillow does not write."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = np.random.default_rng(0).integers(2**16, size=(16, 16 * values), dtype=np.uint16).astype(">u2")
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = struct.pack(">IIBBBBB", 16, 16, 16, colour, 0, 0, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("colour", "values", "mode"), [(0, 1, "I;16"), (2, 3, "RGB;16B"), (4, 2, "LA;16B"), (6, 4, "RGBA;16B")])
def test_sixteen_bits_are_refused_whatever_the_colours(colour, values, mode, channels, tmp_path):
    path = tmp_path / "images" / "deep.png"
    write_deep_png(path, colour, values)
    line = refusal(folder_of, tmp_path, channels=channels)
    assert line == f"{path}: has more than 8 bits a channel (Pillow's mode {mode}); convert it or take it out of data.folder"


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_upright(orientation, suffix, tmp_path):
    upright = np.repeat(np.repeat(noise(4, 4), 8, axis=0), 8, axis=1)
    image, exif = Image.fromarray(upright), Image.Exif()
    exif[0x0112] = orientation
    lying = image.transpose(STORED[orientation]) if orientation in STORED else image
    path = tmp_path / "images" / f"photo.{suffix}"
    path.parent.mkdir()
    lying.convert("RGB").save(path, exif=exif, **{"jpg": {"quality": 100}, "png": {}, "webp": {"lossless": True}}[suffix])
    found = folder_of(tmp_path, size=32, channels=1).pixels[0, 0].numpy()
    np.testing.assert_allclose(found.astype(int), upright.astype(int), atol=8 if suffix == "jpg" else 0)


def test_an_orientation_that_cannot_be_read_is_refused_in_one_line(tmp_path):
    path = tmp_path / "images" / "1.png"
    path.parent.mkdir()
    Image.fromarray(noise(16, 16, 3)).save(path, exif=b"Exif\0\0MM\0")
    assert refusal(folder_of, tmp_path).startswith(f"{path}: not a readable image (")


def transparent(mode, path):
    """Writes a black square, on black that nobody sees."""
    colours = np.zeros((16, 16, 4), dtype=np.uint8)
    colours[4:12, 4:12] = (0, 0, 0, 255)
    path.parent.mkdir()
    if "with" in mode:
        grey = np.where(colours[..., 3] == 255, 0, 7).astype(np.uint8)
        Image.fromarray(grey).convert(mode.split()[0]).save(path, transparency=7 if mode.startswith("L") else (7, 7, 7))
    elif mode == "P":
        Image.fromarray(colours).quantize(4).save(path)
    else:
        Image.fromarray(colours).convert(mode).save(path)
    return np.where(colours[..., 3] == 255, 0, 255)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB with a transparent colour", "L with a transparent colour"])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_transparent_is_white(mode, channels, tmp_path):
    expected = transparent(mode, tmp_path / "images" / "logo.png")
    found = folder_of(tmp_path, channels=channels).pixels[0].numpy()
    assert np.array_equal(found, np.broadcast_to(expected, (channels, 16, 16)))


def test_what_is_half_transparent_is_mixed_with_white(tmp_path):
    save(tmp_path / "images" / "1.png", np.full((16, 16, 4), (0, 100, 255, 128), dtype=np.uint8))
    assert folder_of(tmp_path).pixels[0, :, 0, 0].tolist() == pytest.approx([127, 177, 255], abs=1)


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_an_animated_image_is_refused_by_name(suffix, tmp_path):
    path = tmp_path / "images" / f"moving.{suffix}"
    path.parent.mkdir()
    first, *others = (Image.fromarray(noise(16, 16, 3, seed=seed)) for seed in range(3))
    first.save(path, save_all=True, append_images=others)
    line = refusal(folder_of, tmp_path)
    assert line == f"{path}: is animated (3 frames); save those that you want as images, or take it out of data.folder"


def test_a_photo_with_a_preview_is_its_first_picture(tmp_path):
    """Cameras store the two in one file (MPO), under the name of a JPEG."""
    path = tmp_path / "images" / "1.jpg"
    path.parent.mkdir()
    previews = [Image.new("RGB", (8, 8))]
    Image.new("RGB", (16, 16), (200, 200, 200)).save(path, format="MPO", save_all=True, append_images=previews, quality=95)
    assert Image.open(io.BytesIO(path.read_bytes())).n_frames == 2
    assert abs(folder_of(tmp_path).pixels.float() - 200).max() <= 2


def test_what_is_left_out_is_counted_and_said_in_one_line(tmp_path, capsys):
    root = tmp_path / "images"
    for name in ("cat/1.png", "dog/2.png"):
        save(root / name, noise(16, 16, 3))
    for name in (".ipynb_checkpoints", "@eaDir", "__MACOSX", ".thumbnails", "#recycle", "$RECYCLE.BIN", "cat/@eaDir/deep"):
        save(root / name / "1.png", noise(16, 16, 3))
    save(root / ".1.png", noise(16, 16, 3))
    for name in ("a.tif", "b.tiff", "cat/c.gif", "cat/d.gif", "list.csv"):
        (root / name).write_bytes(b"anything")
    (root / "eel").symlink_to(tmp_path)
    images = folder_of(tmp_path)
    assert len(images) == 2 and images.labels.tolist() == [0, 1]
    line, decoding = capsys.readouterr().err.splitlines()
    assert line == (
        f"data.folder: {root}: 2 images; left out: 1 .csv files, 2 .gif files, 1 .tif files, 1 .tiff files, "
        "8 images that are hidden or in hidden folders, 1 linked folders"
    )
    assert decoding.startswith(f"data.folder: {root}: decoding 2 images")


def test_nothing_is_said_where_nothing_is_left_out_or_decoded(tmp_path, capsys):
    save(tmp_path / "images" / "1.png", noise(16, 16, 3))
    folder_of(tmp_path)
    where = tmp_path / "cache" / "data"
    assert capsys.readouterr().err == f"data.folder: {tmp_path / 'images'}: decoding 1 images to 16 x 16, 7.7e-07 GB, in {where}\n"
    folder_of(tmp_path)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("suffix", ["tif", "tiff", "gif", "heic", "avif", "jp2", "ppm"])
def test_a_folder_of_images_of_another_kind_alone_says_what_is_read(suffix, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / f"1.{suffix.upper()}").write_bytes(b"anything")
    assert refusal(folder_of, tmp_path) == (
        f"data.folder: {tmp_path / 'images'}: holds no images (.png, .jpg, .jpeg, .webp, .bmp), only 1 .{suffix} files; "
        "convert these to PNG or move them, or name another folder"
    )


@pytest.mark.parametrize(
    ("folders", "named", "remedy"),
    [
        (["train", "test"], "test, train", "train"),
        (["Train", "Val"], "Train, Val", "Train"),
        (["train"], "train", "train"),
        (["train/cat", "train/dog", "validation/cat"], "train, validation", "train"),
        (["training_images", "test_images"], "test_images, training_images", "training_images"),
        (["train2017", "val2017"], "train2017, val2017", "train2017"),
        (["trainA", "trainB", "testA"], "testA, trainA, trainB", "trainA"),
        (["images/train", "images/test"], "test, train", "images/train"),
        (["cat", "dog", "test"], "test", "test"),
        (["cat/train", "cat/test", "dog/train"], "test, train", "cat/train"),
    ],
)
def test_the_splits_of_a_data_set_are_no_labels(folders, named, remedy, tmp_path):
    root = tmp_path / "images"
    for folder in folders:
        save(root / folder / "1.png", noise(16, 16, 3))
    line = refusal(folder_of, tmp_path)
    assert f": holds the splits of a data set ({named}); name one of them, --set data.folder={root / remedy}, or move" in line
    assert len(folder_of(tmp_path, folder=str(root / remedy)))  # the remedy works


def test_a_class_may_be_called_as_a_split_is(tmp_path):
    for folder in ("bus", "car", "train", "testudo", "valley", "contest"):
        save(tmp_path / "images" / folder / "1.png", noise(16, 16, 3))
    assert sorted(folder_of(tmp_path).labels.tolist()) == [0, 1, 2, 3, 4, 5]


def test_a_pointer_in_place_of_an_image_is_named(tmp_path):
    path = tmp_path / "images" / "1.png"
    path.parent.mkdir()
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert refusal(folder_of, tmp_path) == f"{path}: a pointer of Git LFS and not the file itself; run `git lfs pull` in its repository"
