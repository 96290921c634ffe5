// Another process of this host whose memory this one reads (memory_link.h), and what a process tells of itself so that
// others find it.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>

#include "comm/mailbox.h"

namespace conclave {

struct MemoryAddress {
  std::string host;  // processes of which this is not empty and the same may try to reach each other
  pid_t pid = 0;
  int mailbox = -1;                    // a file of that process
  uint64_t sample = 0, sample_at = 0;  // what is to be read there by who can

  // `sample` stays where it is.
  static MemoryAddress of_this_process(const Mailbox& mailbox, const uint64_t& sample);
  std::string text() const;
  static MemoryAddress parse(const std::string& text);
};

class MemoryPeer {
 public:
  // `senders`: of its mailbox. Throws std::system_error when the system keeps the processes apart.
  MemoryPeer(int rank, const MemoryAddress& address, int senders);
  ~MemoryPeer();
  MemoryPeer(const MemoryPeer&) = delete;

  int rank() const { return rank_; }
  const Mailbox& mailbox() const { return mailbox_; }
  bool has_ended() const;
  // False, and errno, where that cannot be read.
  bool read(void* to, const void* from, int64_t bytes) const;

 private:
  const int rank_;
  const pid_t pid_;
  const Mailbox mailbox_;
  const int life_;  // a descriptor that is readable when the process has ended
};

}  // namespace conclave
