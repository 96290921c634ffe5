// Faults of the system's file calls, for a program that knows nothing of them: LD_PRELOAD puts these functions before
// the C library's. FAULT says when and what, as "operation:path:first:last:action":
//
//   operation  write, flush (fsync), reserve (posix_fallocate), rename (by its target) or read; with a position or without;
//              or start, of "the program" itself, before its main()
//   path       part of the file's path
//   first      the first such call that fails, counted from 1
//   last       the last one
//   action     kill       SIGKILL, before the call does anything
//              tear       half of a write is done, then SIGKILL
//              short      half of a write is done, which the call tells
//              EIO, ENOSPC  the call fails with this error
//              hang       the call never returns, and nor does the thread
//              leave      the process ends at once, with code 0
//              arm        the call is done, and the program gets SIGKILL where it next enters the function at FAULT_FUNCTION
//
// FAULT_FUNCTION: the function's address in the program's file (nm), in hexadecimal.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static struct {
  char operation[16], path[256], action[16];
  long first, last;
} fault;
static atomic_long calls;

enum verdict { go_on, half, fail };
static enum verdict decide(const char* operation, const char* path);

__attribute__((constructor)) static void read_fault(void) {
  const char* text = getenv("FAULT");
  if (text == NULL) return;
  if (sscanf(text, "%15[^:]:%255[^:]:%ld:%ld:%15s", fault.operation, fault.path, &fault.first, &fault.last,
             fault.action) != 5)
    abort();
  decide("start", "the program");
}

static void die(void) { kill(getpid(), SIGKILL); }
static void die_of_trap(int signal) {
  (void)signal;
  die();
}

static int find_base(struct dl_phdr_info* info, size_t size, void* base) {
  (void)size;
  *(uintptr_t*)base = info->dlpi_addr;
  return 1;  // the first is the program itself
}

static void arm(void) {
  uintptr_t base = 0;
  dl_iterate_phdr(find_base, &base);
  const uintptr_t function = base + strtoull(getenv("FAULT_FUNCTION"), NULL, 16);
  const uintptr_t page = function & ~(uintptr_t)(sysconf(_SC_PAGESIZE) - 1);
  signal(SIGTRAP, die_of_trap);
  if (mprotect((void*)page, function - page + 16, PROT_READ | PROT_WRITE | PROT_EXEC) != 0) abort();
#if defined(__x86_64__)
  *(volatile uint8_t*)function = 0xcc;  // int3
#elif defined(__aarch64__)
  *(volatile uint32_t*)function = 0xd4200000;  // brk #0
  __builtin___clear_cache((char*)function, (char*)function + 4);
#else
  abort();
#endif
}

// Decides about one call. Does not return from a kill.
static enum verdict decide(const char* operation, const char* path) {
  if (strcmp(operation, fault.operation) != 0 || strstr(path, fault.path) == NULL) return go_on;
  const long call = atomic_fetch_add(&calls, 1) + 1;
  if (call < fault.first || call > fault.last) return go_on;
  if (strcmp(fault.action, "kill") == 0) die();
  if (strcmp(fault.action, "arm") == 0) arm();
  if (strcmp(fault.action, "leave") == 0) _exit(0);
  while (strcmp(fault.action, "hang") == 0) pause();
  if (strcmp(fault.action, "tear") == 0 || strcmp(fault.action, "short") == 0) return half;
  if (strcmp(fault.action, "EIO") == 0) return errno = EIO, fail;
  if (strcmp(fault.action, "ENOSPC") == 0) return errno = ENOSPC, fail;
  return go_on;
}

static enum verdict decide_of_open(const char* operation, int descriptor) {
  if (fault.operation[0] == '\0' || strcmp(operation, fault.operation) != 0) return go_on;
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  const ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return go_on;
  path[length] = '\0';
  return decide(operation, path);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int descriptor, const void* data, size_t size) {
  const enum verdict verdict = decide_of_open("write", descriptor);
  if (verdict == fail) return -1;
  if (verdict == half) size = (size + 1) / 2;
  const ssize_t written = NEXT(write)(descriptor, data, size);
  if (verdict == half && strcmp(fault.action, "tear") == 0) die();
  return written;
}
ssize_t pwrite(int descriptor, const void* data, size_t size, off_t offset) {
  const enum verdict verdict = decide_of_open("write", descriptor);
  if (verdict == fail) return -1;
  if (verdict == half) size = (size + 1) / 2;
  const ssize_t written = NEXT(pwrite)(descriptor, data, size, offset);
  if (verdict == half && strcmp(fault.action, "tear") == 0) die();
  return written;
}
ssize_t pwrite64(int descriptor, const void* data, size_t size, off_t offset) {
  return pwrite(descriptor, data, size, offset);
}
ssize_t pread(int descriptor, void* data, size_t size, off_t offset) {
  if (decide_of_open("read", descriptor) == fail) return -1;
  return NEXT(pread)(descriptor, data, size, offset);
}
ssize_t pread64(int descriptor, void* data, size_t size, off_t offset) { return pread(descriptor, data, size, offset); }
int fsync(int descriptor) {
  if (decide_of_open("flush", descriptor) == fail) return -1;
  return NEXT(fsync)(descriptor);
}
int posix_fallocate(int descriptor, off_t offset, off_t length) {
  if (decide_of_open("reserve", descriptor) == fail) return errno;
  return NEXT(posix_fallocate)(descriptor, offset, length);
}
int posix_fallocate64(int descriptor, off_t offset, off_t length) { return posix_fallocate(descriptor, offset, length); }
int rename(const char* from, const char* to) {
  if (decide("rename", to) == fail) return -1;
  return NEXT(rename)(from, to);
}
int renameat2(int from_folder, const char* from, int to_folder, const char* to, unsigned flags) {
  if (decide("rename", to) == fail) return -1;
  return NEXT(renameat2)(from_folder, from, to_folder, to, flags);
}
