"""Contracts for structures and covariances of one's own: subclass them in a pytest file and say what to test.

    from diffusion_var.testing import CovarianceContract, StructureContract

    class TestMine(CovarianceContract):
        def covariance(self):
            return MyCovariance()

The package's own structures and covariances pass the same tests.
"""
