/* The power-loss model: a preloaded shim that keeps a second copy of a folder, as the disk would have it.
 *
 * Files under CRASH_ROOT are followed. What is written to one becomes part of its copy under CRASH_SHADOW only when
 * fsync or fdatasync of that file returns; sync_file_range makes nothing durable. Names (create, rename, unlink,
 * mkdir, rmdir) reach the copy at once, which is the worst case for data: a renamed file that was never synced is
 * there, and empty. The program is killed at some moment, and the copy is what a start after the power loss finds. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

struct range { off_t from, to; };

/* Which file it is, whatever its name: inode numbers are used again, so the moment of birth belongs to it. */
struct identity { unsigned long long ino; long long seconds; unsigned nanos; };

/* A followed file: several descriptors may stand for one. */
struct file {
    struct identity id;
    char shadow[PATH_MAX];
    struct range *dirty;
    size_t count, room;
    struct file *next;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct file *files[4096];
static const char *root, *shadow;
static size_t root_len;

#define REAL(name) ((__typeof__(&name))real(#name))
static void *real(const char *name) {
    void *found = dlsym(RTLD_NEXT, name);
    if (!found) abort();
    return found;
}

__attribute__((constructor)) static void start(void) {
    root = getenv("CRASH_ROOT");
    shadow = getenv("CRASH_SHADOW");
    root_len = root ? strlen(root) : 0;
}

/* The place of a path in the copy; 0 if it is not followed. Followed paths are absolute. */
static int place(const char *path, char *out) {
    if (!root || !shadow || !path || strncmp(path, root, root_len) != 0) return 0;
    if (path[root_len] != '/' && path[root_len] != 0) return 0;
    return snprintf(out, PATH_MAX, "%s%s", shadow, path + root_len) < PATH_MAX;
}

static int identify(int dir, const char *path, int flags, struct identity *id) {
    struct statx st;
    if (statx(dir, path, flags, STATX_INO | STATX_BTIME | STATX_TYPE, &st) != 0 || !S_ISREG(st.stx_mode)) return 0;
    *id = (struct identity){st.stx_ino, st.stx_btime.tv_sec, st.stx_btime.tv_nsec};
    return 1;
}

static struct file **bucket(struct identity id) { return &files[id.ino % 4096]; }

static struct file *known(struct identity id) {
    for (struct file *f = *bucket(id); f; f = f->next)
        if (f->id.ino == id.ino && f->id.seconds == id.seconds && f->id.nanos == id.nanos) return f;
    return NULL;
}

static struct file *find(int fd) {
    struct identity id;
    return root && identify(fd, "", AT_EMPTY_PATH, &id) ? known(id) : NULL;
}

/* The file stands under another name than we know: it was renamed by a system call that passed us by. */
static void moved(struct file *f, const char *to) {
    if (f->shadow[0] && strcmp(f->shadow, to) != 0) REAL(rename)(f->shadow, to);
    strcpy(f->shadow, to);
}

/* A deleted file is followed no longer: its inode number will be another file's. */
static void forget(const char *gone) {
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < 4096; i++)
        for (struct file **at = &files[i]; *at;) {
            struct file *f = *at;
            if (strcmp(f->shadow, gone) == 0) {
                *at = f->next;
                free(f->dirty);
                free(f);
            } else {
                at = &f->next;
            }
        }
    pthread_mutex_unlock(&lock);
}

/* A directory is synced: the names in it are as they are. */
static void names_synced(int fd) {
    char link[64], path[PATH_MAX], to[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t len = readlink(link, path, sizeof path - 1);
    if (len <= 0) return;
    path[len] = 0;
    DIR *dir = place(path, to) ? opendir(path) : NULL;
    if (!dir) return;
    pthread_mutex_lock(&lock);
    for (struct dirent *entry; (entry = readdir(dir));) {
        struct identity id;
        size_t end = strlen(to);
        struct file *f = identify(dirfd(dir), entry->d_name, AT_SYMLINK_NOFOLLOW, &id) ? known(id) : NULL;
        if (!f || end + strlen(entry->d_name) + 2 >= sizeof to) continue;
        sprintf(to + end, "/%s", entry->d_name);
        moved(f, to);
        to[end] = 0;
    }
    pthread_mutex_unlock(&lock);
    closedir(dir);
}

static void opened(int fd, const char *path, int flags) {
    char to[PATH_MAX];
    struct identity id;
    if (fd < 0 || !place(path, to)) return;
    int saved = errno;
    if (!identify(fd, "", AT_EMPTY_PATH, &id)) {
        errno = saved;
        return;
    }
    pthread_mutex_lock(&lock);
    struct file *f = known(id);
    if (!f) {
        f = calloc(1, sizeof *f);
        f->id = id;
        f->next = *bucket(id);
        *bucket(id) = f;
    }
    moved(f, to);
    if (flags & O_TRUNC) f->count = 0;
    if (flags & O_CREAT) {
        int made = REAL(open)(to, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
        if (made >= 0) REAL(close)(made);
    }
    pthread_mutex_unlock(&lock);
    errno = saved;
}

static void dirty(int fd, off_t from, off_t len) {
    if (len <= 0) return;
    int saved = errno;
    pthread_mutex_lock(&lock);
    struct file *f = find(fd);
    if (f) {
        struct range *last = f->count ? &f->dirty[f->count - 1] : NULL;
        if (last && from <= last->to && from >= last->from) {
            if (from + len > last->to) last->to = from + len;
        } else {
            if (f->count == f->room) {
                f->room = f->room ? f->room * 2 : 16;
                f->dirty = realloc(f->dirty, f->room * sizeof *f->dirty);
            }
            f->dirty[f->count++] = (struct range){from, from + len};
        }
    }
    pthread_mutex_unlock(&lock);
    errno = saved;
}

static void copy_range(int from, int to, struct range r) {
    static char buffer[1 << 16];
    while (r.from < r.to) {
        size_t want = (size_t)(r.to - r.from) < sizeof buffer ? (size_t)(r.to - r.from) : sizeof buffer;
        ssize_t got = pread(from, buffer, want, r.from);
        if (got <= 0 || REAL(pwrite)(to, buffer, (size_t)got, r.from) != got) return;
        r.from += got;
    }
}

/* Everything that was written to the file reaches its copy, and the file's length does. */
static void synced(int fd) {
    struct stat st;
    if (!root || fstat(fd, &st) != 0) return;
    int saved = errno;
    if (S_ISDIR(st.st_mode)) names_synced(fd);
    pthread_mutex_lock(&lock);
    struct file *f = find(fd);
    if (f) {
        /* A descriptor of the file that can be read: the program's own may be for writing only. */
        char self[64];
        snprintf(self, sizeof self, "/proc/self/fd/%d", fd);
        int from = REAL(open)(self, O_RDONLY | O_CLOEXEC);
        int to = !f->shadow[0] ? -1 : REAL(open)(f->shadow, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
        if (from >= 0 && to >= 0) {
            for (size_t i = 0; i < f->count; i++) copy_range(from, to, f->dirty[i]);
            if (REAL(ftruncate)(to, st.st_size) == 0) f->count = 0;
        }
        if (from >= 0) REAL(close)(from);
        if (to >= 0) REAL(close)(to);
    }
    pthread_mutex_unlock(&lock);
    errno = saved;
}

static void renamed(const char *old, const char *new) {
    char from[PATH_MAX], to[PATH_MAX];
    if (!place(old, from) || !place(new, to)) return;
    int saved = errno;
    pthread_mutex_lock(&lock);
    REAL(rename)(from, to);
    for (size_t i = 0; i < 4096; i++)
        for (struct file *f = files[i]; f; f = f->next)
            if (strcmp(f->shadow, to) == 0) f->shadow[0] = 0;
    for (size_t i = 0; i < 4096; i++)
        for (struct file *f = files[i]; f; f = f->next)
            if (strcmp(f->shadow, from) == 0) strcpy(f->shadow, to);
    pthread_mutex_unlock(&lock);
    errno = saved;
}

/* ---- what the program calls ---- */

#define OPEN_BODY(call)                                            \
    int mode = 0;                                                  \
    if (flags & (O_CREAT | O_TMPFILE)) {                           \
        va_list args;                                              \
        va_start(args, flags);                                     \
        mode = va_arg(args, int);                                  \
        va_end(args);                                              \
    }                                                              \
    int fd = call;                                                 \
    opened(fd, path, flags);                                       \
    return fd;

int open(const char *path, int flags, ...) { OPEN_BODY(REAL(open)(path, flags, mode)) }
int open64(const char *path, int flags, ...) { OPEN_BODY(REAL(open64)(path, flags, mode)) }
int openat(int dir, const char *path, int flags, ...) { OPEN_BODY(REAL(openat)(dir, path, flags, mode)) }
int openat64(int dir, const char *path, int flags, ...) { OPEN_BODY(REAL(openat64)(dir, path, flags, mode)) }

ssize_t write(int fd, const void *data, size_t len) {
    ssize_t done = REAL(write)(fd, data, len);
    if (root && done > 0) dirty(fd, lseek(fd, 0, SEEK_CUR) - done, done);
    return done;
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
    ssize_t done = REAL(writev)(fd, parts, count);
    if (root && done > 0) dirty(fd, lseek(fd, 0, SEEK_CUR) - done, done);
    return done;
}
ssize_t pwrite(int fd, const void *data, size_t len, off_t at) {
    ssize_t done = REAL(pwrite)(fd, data, len, at);
    dirty(fd, at, done);
    return done;
}
ssize_t pwrite64(int fd, const void *data, size_t len, off64_t at) {
    ssize_t done = REAL(pwrite64)(fd, data, len, at);
    dirty(fd, at, done);
    return done;
}
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at) {
    ssize_t done = REAL(pwritev)(fd, parts, count, at);
    dirty(fd, at, done);
    return done;
}
int fsync(int fd) {
    int done = REAL(fsync)(fd);
    if (done == 0) synced(fd);
    return done;
}
int fdatasync(int fd) {
    int done = REAL(fdatasync)(fd);
    if (done == 0) synced(fd);
    return done;
}
int sync_file_range(int fd, off64_t from, off64_t len, unsigned flags) {
    return REAL(sync_file_range)(fd, from, len, flags);
}
/* Longer or shorter: the copy has the length that the file has when it is synced. */
int ftruncate(int fd, off_t len) { return REAL(ftruncate)(fd, len); }
int ftruncate64(int fd, off64_t len) { return REAL(ftruncate64)(fd, len); }

int rename(const char *old, const char *new) {
    int done = REAL(rename)(old, new);
    if (done == 0) renamed(old, new);
    return done;
}
int unlink(const char *path) {
    char to[PATH_MAX];
    int done = REAL(unlink)(path);
    if (done == 0 && place(path, to)) {
        REAL(unlink)(to);
        forget(to);
    }
    return done;
}
int unlinkat(int dir, const char *path, int flags) {
    char whole[PATH_MAX], link[64], to[PATH_MAX];
    int done = REAL(unlinkat)(dir, path, flags);
    if (done != 0 || !root) return done;
    snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
    ssize_t len = readlink(link, whole, sizeof whole - 1);
    if (len > 0 && path[0] != '/' && (size_t)len + strlen(path) + 2 < sizeof whole) {
        whole[len] = '/';
        strcpy(whole + len + 1, path);
        if (place(whole, to)) {
            REAL(unlinkat)(AT_FDCWD, to, flags);
            forget(to);
        }
    }
    return done;
}
int mkdir(const char *path, mode_t mode) {
    char to[PATH_MAX];
    int done = REAL(mkdir)(path, mode);
    if (done == 0 && place(path, to)) REAL(mkdir)(to, 0755);
    return done;
}
int rmdir(const char *path) {
    char to[PATH_MAX];
    int done = REAL(rmdir)(path);
    if (done == 0 && place(path, to)) REAL(rmdir)(to);
    return done;
}
