#include "base/broken_pipes.h"

#include <csignal>

namespace conclave {

void ignore_broken_pipes() {
  struct sigaction standing {};
  sigaction(SIGPIPE, nullptr, &standing);
  if ((standing.sa_flags & SA_SIGINFO) == 0 && standing.sa_handler == SIG_DFL) ::signal(SIGPIPE, SIG_IGN);
}

}  // namespace conclave
