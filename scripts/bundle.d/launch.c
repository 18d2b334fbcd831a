/* Starts one program of the self-contained bundle, wherever the bundle was unpacked and whatever C library the system has.
 *
 * Each program of the bundle is a hard link to this one executable, so /proc/self/exe says both which program is meant
 * and where the bundle lies.  The program is started by the bundle's own dynamic loader.  Options of the loader are
 * used in place of LD_LIBRARY_PATH, because a variable would reach every program that CRIU starts.
 */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_OPTIONS 3

struct program {
    const char *name;               /* last part of the path by which it was started */
    const char *target;             /* executable in root/ */
    const char *options[MAX_OPTIONS]; /* before the user's; "@" stands for the bundle's directory */
    const char *variable;           /* set to `value` if it is not set */
    const char *value;
};

static const struct program programs[] = {
    {"python3", "usr/bin/python3", {NULL}, NULL, NULL},
    {"sealpoint", "usr/bin/python3", {"-I", "@/lib/start/sealpoint"}, NULL, NULL},
    {"checkpointctl-sealpoint", "usr/bin/python3", {"-I", "@/lib/start/checkpointctl-sealpoint"}, NULL, NULL},
    {"criu", "usr/sbin/criu", {"--libdir", "@/root/usr/lib/criu"}, NULL, NULL},
    {"crit", "usr/bin/python3", {"-I", "@/lib/start/crit"}, NULL, NULL},
    {"tar", "usr/bin/tar", {NULL}, NULL, NULL},
    {"gzip", "usr/bin/gzip", {NULL}, NULL, NULL},
    {"ip", "usr/bin/ip", {NULL}, NULL, NULL},
    {"nft", "usr/sbin/nft", {NULL}, NULL, NULL},
    {"iptables-save", "usr/sbin/xtables-nft-multi", {NULL}, "XTABLES_LIBDIR", "@/root/" XTABLES},
    {"iptables-restore", "usr/sbin/xtables-nft-multi", {NULL}, "XTABLES_LIBDIR", "@/root/" XTABLES},
    {"ip6tables-save", "usr/sbin/xtables-nft-multi", {NULL}, "XTABLES_LIBDIR", "@/root/" XTABLES},
    {"ip6tables-restore", "usr/sbin/xtables-nft-multi", {NULL}, "XTABLES_LIBDIR", "@/root/" XTABLES},
};

static void fail(const char *what, const char *path)
{
    fprintf(stderr, "sealpoint: %s %s: %s\n", what, path, strerror(errno));
    exit(127);
}

static char *text(const char *format, const char *a, const char *b)
{
    char *result;
    if (asprintf(&result, format, a, b) < 0) fail("no memory for", a);
    return result;
}

static char *in_bundle(const char *pattern, const char *directory)
{
    return pattern[0] == '@' ? text("%s%s", directory, pattern + 1) : text("%s%s", pattern, "");
}

/* CRIU calls other programs by name.  Its own GNU tar comes first, since BusyBox's lacks the options that CRIU gives;
 * what fits the host's kernel and firewall comes from the host where it has it. */
static void extend_path(const char *directory)
{
    const char *path = getenv("PATH");
    char *first, *all;

    if (!path || !*path) path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    first = text("%s/tools/first:%s", directory, path);
    all = text("%s:%s/tools", first, directory);
    if (setenv("PATH", all, 1)) fail("cannot set", "PATH");
}

int main(int argc, char **argv)
{
    static char self[PATH_MAX];
    char *directory = self, *name, *slash, **words;
    const struct program *program = NULL;
    size_t i, n = 0;
    ssize_t size = readlink("/proc/self/exe", self, sizeof self - 1);

    if (size <= 0 || size == sizeof self - 1) fail("cannot read", "/proc/self/exe (is /proc mounted?)");
    directory = strdup(self);
    if (!directory || !(slash = strrchr(directory, '/'))) fail("cannot use", self);
    name = slash + 1;
    for (i = 0; i < sizeof programs / sizeof *programs; i++)
        if (!strcmp(programs[i].name, name)) program = &programs[i];
    if (!program) {
        errno = ENOENT;
        fail("the bundle has no program", name);
    }
    *slash = 0; /* bin, tools or tools/first */
    while (access(text("%s/%s", directory, LOADER), X_OK)) {
        if (!(slash = strrchr(directory, '/')) || slash == directory) fail("cannot find the bundle of", self);
        *slash = 0;
    }
    if (!strcmp(name, "criu")) extend_path(directory);
    if (program->variable && setenv(program->variable, in_bundle(program->value, directory), 0))
        fail("cannot set", program->variable);

    words = calloc((size_t)argc + MAX_OPTIONS + 8, sizeof *words);
    if (!words) fail("no memory for", self);
    /* CRIU has a loader that nothing else maps: the kernel refuses to restore a task that maps the file which CRIU was
     * started from (EBUSY for PR_SET_MM_EXE_FILE), and the bundle's Python maps the other one. */
    words[n++] = text("%s/%s", directory, strcmp(name, "criu") ? LOADER : "lib/loader-of-criu");
    words[n++] = "--inhibit-cache";
    words[n++] = "--library-path";
    words[n++] = text("%s/%s", directory, LIBRARIES);
    words[n++] = "--argv0";
    /* Python finds its library by its own path; xtables finds the command by its name. */
    words[n++] = strcmp(program->target, "usr/bin/python3") ? name : text("%s/bin/%s", directory, "python3");
    words[n++] = text("%s/root/%s", directory, program->target);
    for (i = 0; i < MAX_OPTIONS && program->options[i]; i++) words[n++] = in_bundle(program->options[i], directory);
    for (i = 1; i < (size_t)argc; i++) words[n++] = argv[i];
    execv(words[0], words);
    fail("cannot start", words[0]);
}
