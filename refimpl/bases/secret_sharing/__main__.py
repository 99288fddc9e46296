"""The second party as a process of its own; `session.in_processes` starts it."""

import sys

from refimpl.bases.secret_sharing.session import second_party

sys.stdout.buffer.write(second_party(sys.stdin.buffer.read()))
