"""What the table of features claims is there."""

import peers
import pytest


def test_every_name_of_this_library_is_there():
    for feature, (ours, *_) in peers.FEATURES.items():
        assert ours is None or peers.found("cdrl_fast", ours), feature
    assert not peers.found("cdrl_fast", "no_such_name")
    assert not peers.found("cdrl_fast", "Sampler.no_such_name")


@pytest.mark.parametrize("package", ["torchebm", "ebm"])
def test_every_name_of_a_neighbour_is_there(package):
    pytest.importorskip(package)
    at = list(peers.LIBRARIES.values()).index(package)
    for feature, names in peers.FEATURES.items():
        assert names[at] is None or peers.found(package, names[at]), feature
