"""One thread: the tests' tensors are small, and threads that wait for a busy core cost more than they give."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
