"""What every test finds: signals as a terminal's shell leaves them.

Whoever starts the tests behind `nohup` or in the background of a script leaves SIGHUP or SIGINT ignored. Processes inherit that, and a run under test
would go on where it should end.
"""

import signal

if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
