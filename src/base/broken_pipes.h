// Writing to a pipe or socket whose reader is gone: an error of that write, not the end of the process.
#pragma once

namespace conclave {

// Of this process from now on: neither a lost reader of the output (`| head`) nor a lost rank ends it by SIGPIPE. A
// handler that somebody has set stays.
void ignore_broken_pipes();

}  // namespace conclave
