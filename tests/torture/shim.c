/* Loaded before libc (ld.so(8), LD_PRELOAD): counts the calls of a process that concern files below a folder, and
   harms the one with a given number: the process is killed before it, or in the middle of a write, or the call fails.
   Python and the SQLite within apsw reach the disk through these functions of libc only, which test_kill.py proves with
   strace. What is to be harmed stands in a file that all processes map; see tracing.py, which has the same fields. */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind {
  OPEN_READ = 1,    /* an open that changes nothing */
  OPEN_WRITE = 2,   /* an open of what is there, to write it */
  OPEN_MAKE = 4,    /* an open that may make a file or empty one */
  READ = 8,
  WRITE = 16,
  RESIZE = 32,
  SYNC = 64,
  MAKE_NAME = 128,  /* mkdir, link, rename, symlink */
  REMOVE_NAME = 256,
  ATTRIBUTES = 512,
};

enum harm { NOTHING, KILL, KILL_HALF_WAY, FAIL, CUT_SHORT };

struct control {
  uint32_t armed;
  uint32_t harm;
  uint64_t at;      /* the number of the call that is harmed, from 1 */
  uint32_t for_good;/* all after it too */
  int32_t error;
  uint32_t kinds;   /* what is counted */
  uint32_t logged;  /* 1: each counted call is appended to the log; 2: what fsync could lose, too */
  uint64_t count;
  uint64_t harmed;
  char prefix[512];
  char call[32];    /* what was harmed first */
  char path[512];
};

enum { PATH_BYTES = 1024, PAGE = 4096 };

static struct control *control;
static int log_fd = -1;
/* Only the processes that are watched; inherited by fork(2). */
static int is_subject;

__attribute__((constructor)) static void begin(void) {
  const char *name = getenv("TORTURE_CONTROL"), *log = getenv("TORTURE_LOG");
  is_subject = getenv("TORTURE_SUBJECT") != NULL;
  int fd = name ? open(name, O_RDWR | O_CLOEXEC) : -1;
  if (fd >= 0) {
    void *found = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (found != MAP_FAILED) control = found;
    close(fd);
  }
  if (log) log_fd = open(log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
}

/* Called by the process itself when it becomes one of those that are watched. */
void torture_subject(int is_watched) { is_subject = is_watched; }

#define REAL(name) \
  static __typeof__(name) *real; \
  if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

static int path_of_fd(int fd, char *path) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, PATH_BYTES - 1);
  path[length < 0 ? 0 : length] = 0;
  return length > 0;
}

static void path_at(int folder, const char *name, char *path) {
  path[0] = 0;
  if (!name) return;
  if (name[0] == '/') {
    snprintf(path, PATH_BYTES, "%s", name);
    return;
  }
  if (folder == AT_FDCWD ? getcwd(path, PATH_BYTES) != NULL : path_of_fd(folder, path)) {
    size_t length = strlen(path);
    snprintf(path + length, PATH_BYTES - length, "/%s", name);
  }
}

static void write_log(const void *data, size_t length) {
  static ssize_t (*real)(int, const void *, size_t);
  if (!real) real = (ssize_t (*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
  if (log_fd >= 0 && real(log_fd, data, length) != (ssize_t)length) abort();
}

static int is_watched(const char *path) {
  if (!control || !is_subject || !__atomic_load_n(&control->armed, __ATOMIC_SEQ_CST)) return 0;
  size_t length = strlen(control->prefix);
  return length && !strncmp(path, control->prefix, length) && (path[length] == '/' || !path[length]);
}

/* Counts one call and says what becomes of it. KILL does not return. */
static enum harm harm_of(const char *call, enum kind kind, const char *path) {
  if (!is_watched(path) || !(control->kinds & kind)) return NOTHING;
  uint64_t number = __atomic_add_fetch(&control->count, 1, __ATOMIC_SEQ_CST);
  if (control->logged == 1) {
    char line[PATH_BYTES + 64];
    int length = snprintf(line, sizeof line, "%s %s\n", call, path + strlen(control->prefix));
    write_log(line, (size_t)length);
  }
  if (control->harm == NOTHING || number < control->at) return NOTHING;
  if (number > control->at && !control->for_good) return NOTHING;
  if (__atomic_add_fetch(&control->harmed, 1, __ATOMIC_SEQ_CST) == 1) {
    snprintf(control->call, sizeof control->call, "%s", call);
    snprintf(control->path, sizeof control->path, "%s", path + strlen(control->prefix));
  }
  if (control->harm == KILL) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
  }
  return control->harm;
}

static enum harm harm_of_fd(const char *call, enum kind kind, int fd) {
  char path[PATH_BYTES];
  if (!control || !is_subject || !control->armed || !path_of_fd(fd, path)) return NOTHING;
  return harm_of(call, kind, path);
}

static enum harm harm_at(const char *call, enum kind kind, int folder, const char *name) {
  char path[PATH_BYTES];
  if (!control || !is_subject || !control->armed) return NOTHING;
  path_at(folder, name, path);
  return harm_of(call, kind, path);
}

static int failed(void) {
  errno = control->error;
  return -1;
}

/* --- what an fsync that failed may have lost: the pages written since the last one, as they were before */

struct change {
  uint32_t magic;
  uint32_t what;  /* 1 pages are about to be changed, 2 synced, 3 not synced, 4 the file goes */
  uint64_t inode;
  uint64_t start; /* of the pages, and how many bytes of them were in the file before */
  uint64_t length;
  uint64_t before;
};

static void note_change(int fd, uint32_t what, uint64_t start, uint64_t length) {
  char path[PATH_BYTES];
  struct stat found;
  if (!control || control->logged != 2 || !path_of_fd(fd, path) || !is_watched(path)) return;
  if (fstat(fd, &found) || !S_ISREG(found.st_mode)) return;
  uint64_t end = (start + length + PAGE - 1) / PAGE * PAGE;
  start = start / PAGE * PAGE;
  uint64_t size = (uint64_t)found.st_size;
  uint64_t before = what != 1 || start >= size ? 0 : (end < size ? end : size) - start;
  struct change change = {0x746f7274, what, found.st_ino, start, what == 1 ? end - start : 0, before};
  char *record = malloc(sizeof change + before);
  if (!record) abort();
  memcpy(record, &change, sizeof change);
  static ssize_t (*real)(int, void *, size_t, off_t);
  if (!real) real = (ssize_t (*)(int, void *, size_t, off_t))dlsym(RTLD_NEXT, "pread64");
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  /* Through a descriptor of its own: `fd` may be for writing only. */
  static int (*real_open)(const char *, int, ...);
  if (!real_open) real_open = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open64");
  int reader = before ? real_open(link, O_RDONLY | O_CLOEXEC) : -1;
  if (before && (reader < 0 || real(reader, record + sizeof change, before, (off_t)start) != (ssize_t)before)) abort();
  if (reader >= 0) close(reader);
  write_log(record, sizeof change + before);
  free(record);
}

/* The number of a removed file is given to the next one that is made. */
static void note_gone(int folder, const char *name) {
  char path[PATH_BYTES];
  struct stat found;
  if (!control || control->logged != 2 || !is_subject) return;
  path_at(folder, name, path);
  if (!is_watched(path) || lstat(path, &found) || !S_ISREG(found.st_mode) || found.st_nlink != 1) return;
  struct change change = {0x746f7274, 4, found.st_ino, 0, 0, 0};
  write_log(&change, sizeof change);
}

/* --- open */

static enum kind kind_of_open(int flags) {
  if (flags & (O_CREAT | O_TRUNC) || (flags & O_TMPFILE) == O_TMPFILE) return OPEN_MAKE;
  return (flags & O_ACCMODE) == O_RDONLY ? OPEN_READ : OPEN_WRITE;
}

#define MODE \
  mode_t mode = 0; \
  if (flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE) { \
    va_list rest; \
    va_start(rest, flags); \
    mode = va_arg(rest, mode_t); \
    va_end(rest); \
  }

#define OPEN(name) \
  int name(const char *path, int flags, ...) { \
    REAL(name); \
    MODE \
    if (harm_at("open", kind_of_open(flags), AT_FDCWD, path) == FAIL) return failed(); \
    return real(path, flags, mode); \
  }
#define OPENAT(name) \
  int name(int folder, const char *path, int flags, ...) { \
    REAL(name); \
    MODE \
    if (harm_at("open", kind_of_open(flags), folder, path) == FAIL) return failed(); \
    return real(folder, path, flags, mode); \
  }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

DIR *opendir(const char *path) {
  REAL(opendir);
  /* No file system interrupts it, and Python does not call it again as it does the others. */
  if (control && control->error == EINTR) return real(path);
  if (harm_at("open", OPEN_READ, AT_FDCWD, path) == FAIL) {
    errno = control->error;
    return NULL;
  }
  return real(path);
}

/* --- read */

ssize_t read(int fd, void *data, size_t length) {
  REAL(read);
  if (harm_of_fd("read", READ, fd) == FAIL) return failed();
  return real(fd, data, length);
}

#define PREAD(name) \
  ssize_t name(int fd, void *data, size_t length, off_t start) { \
    REAL(name); \
    if (harm_of_fd("pread", READ, fd) == FAIL) return failed(); \
    return real(fd, data, length, start); \
  }
PREAD(pread)
PREAD(pread64)

/* --- write */

/* How much of a write is done: all, half, or nothing (-1). Half of one byte is that byte. */
static ssize_t done_of(enum harm harm, size_t length) {
  if (harm == FAIL) return -1;
  if (harm == NOTHING || length < 2) return (ssize_t)length;
  return (ssize_t)(length / 2);
}

static ssize_t after_write(enum harm harm, ssize_t written) {
  if (harm == KILL_HALF_WAY) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
  }
  return written;
}

ssize_t write(int fd, const void *data, size_t length) {
  REAL(write);
  enum harm harm = harm_of_fd("write", WRITE, fd);
  ssize_t done = done_of(harm, length);
  if (done < 0) return failed();
  if (control && control->logged == 2 && is_subject) {
    struct stat found;
    off_t start = fcntl(fd, F_GETFL) & O_APPEND && !fstat(fd, &found) ? found.st_size : lseek(fd, 0, SEEK_CUR);
    if (start >= 0) note_change(fd, 1, (uint64_t)start, (uint64_t)done);
  }
  return after_write(harm, real(fd, data, (size_t)done));
}

#define PWRITE(name) \
  ssize_t name(int fd, const void *data, size_t length, off_t start) { \
    REAL(name); \
    enum harm harm = harm_of_fd("pwrite", WRITE, fd); \
    ssize_t done = done_of(harm, length); \
    if (done < 0) return failed(); \
    if (is_subject) note_change(fd, 1, (uint64_t)start, (uint64_t)done); \
    return after_write(harm, real(fd, data, (size_t)done, start)); \
  }
PWRITE(pwrite)
PWRITE(pwrite64)

#define SENDFILE(name) \
  ssize_t name(int fd, int source, off_t *start, size_t length) { \
    REAL(name); \
    enum harm harm = harm_of_fd("sendfile", WRITE, fd); \
    ssize_t done = done_of(harm, length); \
    if (done < 0) return failed(); \
    return after_write(harm, real(fd, source, start, (size_t)done)); \
  }
SENDFILE(sendfile)
SENDFILE(sendfile64)

ssize_t copy_file_range(int source, off64_t *from, int fd, off64_t *to, size_t length, unsigned flags) {
  REAL(copy_file_range);
  enum harm harm = harm_of_fd("copy_file_range", WRITE, fd);
  ssize_t done = done_of(harm, length);
  if (done < 0) return failed();
  return after_write(harm, real(source, from, fd, to, (size_t)done, flags));
}

/* --- length */

#define FTRUNCATE(name) \
  int name(int fd, off_t length) { \
    REAL(name); \
    struct stat found; \
    if (harm_of_fd("ftruncate", RESIZE, fd) == FAIL) return failed(); \
    if (is_subject && !fstat(fd, &found) && found.st_size > length) \
      note_change(fd, 1, (uint64_t)length, (uint64_t)(found.st_size - length)); \
    return real(fd, length); \
  }
FTRUNCATE(ftruncate)
FTRUNCATE(ftruncate64)

#define TRUNCATE(name) \
  int name(const char *path, off_t length) { \
    REAL(name); \
    if (harm_at("truncate", RESIZE, AT_FDCWD, path) == FAIL) return failed(); \
    return real(path, length); \
  }
TRUNCATE(truncate)
TRUNCATE(truncate64)

#define FALLOCATE(name) \
  int name(int fd, int mode, off_t start, off_t length) { \
    REAL(name); \
    if (harm_of_fd("fallocate", RESIZE, fd) == FAIL) return failed(); \
    return real(fd, mode, start, length); \
  }
FALLOCATE(fallocate)
FALLOCATE(fallocate64)

#define POSIX_FALLOCATE(name) \
  int name(int fd, off_t start, off_t length) { \
    REAL(name); \
    if (harm_of_fd("fallocate", RESIZE, fd) == FAIL) return control->error; \
    return real(fd, start, length); \
  }
POSIX_FALLOCATE(posix_fallocate)
POSIX_FALLOCATE(posix_fallocate64)

/* --- sync */

#define SYNC(name) \
  int name(int fd) { \
    REAL(name); \
    if (harm_of_fd(#name, SYNC, fd) == FAIL) { \
      if (control->error != EINTR) note_change(fd, 3, 0, 0); \
      return failed(); \
    } \
    if (is_subject) note_change(fd, 2, 0, 0); \
    return real(fd); \
  }
SYNC(fsync)
SYNC(fdatasync)

/* --- names */

int rename(const char *old, const char *path) {
  REAL(rename);
  if (harm_at("rename", MAKE_NAME, AT_FDCWD, path) == FAIL) return failed();
  note_gone(AT_FDCWD, path);
  return real(old, path);
}

int renameat(int old_folder, const char *old, int folder, const char *path) {
  REAL(renameat);
  if (harm_at("rename", MAKE_NAME, folder, path) == FAIL) return failed();
  return real(old_folder, old, folder, path);
}

int renameat2(int old_folder, const char *old, int folder, const char *path, unsigned flags) {
  REAL(renameat2);
  if (harm_at("rename", MAKE_NAME, folder, path) == FAIL) return failed();
  return real(old_folder, old, folder, path, flags);
}

int link(const char *old, const char *path) {
  REAL(link);
  if (harm_at("link", MAKE_NAME, AT_FDCWD, path) == FAIL) return failed();
  return real(old, path);
}

int linkat(int old_folder, const char *old, int folder, const char *path, int flags) {
  REAL(linkat);
  if (harm_at("link", MAKE_NAME, folder, path) == FAIL) return failed();
  return real(old_folder, old, folder, path, flags);
}

int symlink(const char *target, const char *path) {
  REAL(symlink);
  if (harm_at("symlink", MAKE_NAME, AT_FDCWD, path) == FAIL) return failed();
  return real(target, path);
}

int symlinkat(const char *target, int folder, const char *path) {
  REAL(symlinkat);
  if (harm_at("symlink", MAKE_NAME, folder, path) == FAIL) return failed();
  return real(target, folder, path);
}

int mkdir(const char *path, mode_t mode) {
  REAL(mkdir);
  if (harm_at("mkdir", MAKE_NAME, AT_FDCWD, path) == FAIL) return failed();
  return real(path, mode);
}

int mkdirat(int folder, const char *path, mode_t mode) {
  REAL(mkdirat);
  if (harm_at("mkdir", MAKE_NAME, folder, path) == FAIL) return failed();
  return real(folder, path, mode);
}

int unlink(const char *path) {
  REAL(unlink);
  if (harm_at("unlink", REMOVE_NAME, AT_FDCWD, path) == FAIL) return failed();
  note_gone(AT_FDCWD, path);
  return real(path);
}

int unlinkat(int folder, const char *path, int flags) {
  REAL(unlinkat);
  const char *call = flags & AT_REMOVEDIR ? "rmdir" : "unlink";
  if (harm_at(call, REMOVE_NAME, folder, path) == FAIL) return failed();
  note_gone(folder, path);
  return real(folder, path, flags);
}

int rmdir(const char *path) {
  REAL(rmdir);
  if (harm_at("rmdir", REMOVE_NAME, AT_FDCWD, path) == FAIL) return failed();
  return real(path);
}

/* --- attributes */

int chmod(const char *path, mode_t mode) {
  REAL(chmod);
  if (harm_at("chmod", ATTRIBUTES, AT_FDCWD, path) == FAIL) return failed();
  return real(path, mode);
}

int fchmod(int fd, mode_t mode) {
  REAL(fchmod);
  if (harm_of_fd("chmod", ATTRIBUTES, fd) == FAIL) return failed();
  return real(fd, mode);
}

int fchmodat(int folder, const char *path, mode_t mode, int flags) {
  REAL(fchmodat);
  if (harm_at("chmod", ATTRIBUTES, folder, path) == FAIL) return failed();
  return real(folder, path, mode, flags);
}

int fchown(int fd, uid_t uid, gid_t gid) {
  REAL(fchown);
  if (harm_of_fd("chown", ATTRIBUTES, fd) == FAIL) return failed();
  return real(fd, uid, gid);
}

int fchownat(int folder, const char *path, uid_t uid, gid_t gid, int flags) {
  REAL(fchownat);
  if (harm_at("chown", ATTRIBUTES, folder, path) == FAIL) return failed();
  return real(folder, path, uid, gid, flags);
}

int lchown(const char *path, uid_t uid, gid_t gid) {
  REAL(lchown);
  if (harm_at("chown", ATTRIBUTES, AT_FDCWD, path) == FAIL) return failed();
  return real(path, uid, gid);
}

int utimensat(int folder, const char *path, const struct timespec times[2], int flags) {
  REAL(utimensat);
  if (harm_at("utimensat", ATTRIBUTES, folder, path) == FAIL) return failed();
  return real(folder, path, times, flags);
}

int futimens(int fd, const struct timespec times[2]) {
  REAL(futimens);
  if (harm_of_fd("utimensat", ATTRIBUTES, fd) == FAIL) return failed();
  return real(fd, times);
}
