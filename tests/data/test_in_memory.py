import numpy as np
import pytest

from ahl_jax.common.errors import BadImageError
from ahl_jax.data.batches import iter_batches
from ahl_jax.data.images import as_image, image_digest, image_size, read_image
from ahl_jax.data.records import InMemory

ARRAY = np.arange(12 * 16 * 3, dtype=np.uint8).reshape(12, 16, 3)


def test_an_array_is_read_as_an_image_of_its_own() -> None:
    image = InMemory("one", ARRAY)
    np.testing.assert_array_equal(read_image(image, 8), as_image(ARRAY, 8))
    ((_, batch),) = iter_batches([image, InMemory("grey", ARRAY[..., 0])], 8, 2)
    np.testing.assert_array_equal(batch[1], as_image(ARRAY[..., 0], 8))
    assert image_size(image) == ARRAY.nbytes


def test_arrays_are_told_apart_by_all_that_makes_the_image() -> None:
    others = [ARRAY, ARRAY.reshape(16, 12, 3), ARRAY.view(np.bool_), ARRAY + np.uint8(1)]
    digests = [image_digest(InMemory("one", array)) for array in others]
    assert len(set(digests)) == len(others)
    assert image_digest(InMemory("two", np.asfortranarray(ARRAY))) == digests[0]


def test_what_is_no_image_is_refused_by_its_name() -> None:
    with pytest.raises(BadImageError, match="image 7 of X is no image"):
        read_image(InMemory("image 7 of X", ARRAY[0, 0]), 8)
