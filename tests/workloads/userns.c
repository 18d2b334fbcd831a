/* Workload: three processes with three user ids, in a user namespace and, if ROOT is given, in a root, a mount, a pid
 * and an IPC namespace as well.
 *
 *   userns MAP SECRET [ROOT]     MAP: lines of uid_map and gid_map, as "0 100000 65536"; ROOT: a directory with this program
 *
 * Prints the pid of the first process, which is in the namespaces, and ends; that one has no descriptor open.  Whoever
 * sends SIGUSR1 to one of them makes it look at its memory, its ids and its tmpfs: its name (comm) is then "ok N", with
 * N counting the questions, or "bad WHAT".  With a map of a single id all three have that one.  Built statically.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PRIVATE (2u << 20)
#define SHARED (256u << 10)

static void die(const char *what) {
	fprintf(stderr, "userns: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void put(pid_t pid, const char *name, const char *text) {
	char path[64];
	snprintf(path, sizeof path, "/proc/%d/%s", pid, name);
	int fd = open(path, O_WRONLY);
	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		die(path);
	close(fd);
}

static void enter(const char *root) {
	if (mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) || mount(root, root, NULL, MS_BIND | MS_REC, NULL))
		die("cannot bind the root");
	char path[4096];
	snprintf(path, sizeof path, "%s/proc", root);
	if (mount("proc", path, "proc", 0, NULL))
		die("cannot mount /proc");
	snprintf(path, sizeof path, "%s/tmp", root);
	if (mount("tmpfs", path, "tmpfs", 0, "mode=0777"))
		die("cannot mount /tmp");
	if (chdir(root) || syscall(SYS_pivot_root, ".", ".") || umount2(".", MNT_DETACH) || chdir("/"))
		die("cannot change the root");
	int fd = open("/tmp/secret", O_WRONLY | O_CREAT, 0644);
	if (fd < 0 || write(fd, "kept", 4) != 4)
		die("/tmp/secret");
	close(fd);
}

static unsigned char byte(unsigned seed, size_t at) {
	return (unsigned char)((at * 2654435761u + seed * 40503u) >> 11);
}

static void fill(unsigned char *memory, size_t size, unsigned seed) {
	for (size_t i = 0; i < size; i++)
		memory[i] = byte(seed, i);
}

static int holds(const unsigned char *memory, size_t size, unsigned seed) {
	for (size_t i = 0; i < size; i++)
		if (memory[i] != byte(seed, i))
			return 0;
	return 1;
}

static const char *damage(const unsigned char *own, const unsigned char *shared, unsigned seed, uid_t id, int rooted) {
	uid_t real, effective, saved;
	gid_t group, other, third;
	char text[8] = "";
	if (!holds(own, PRIVATE, seed))
		return "private";
	if (!holds(shared, SHARED, 99))
		return "shared";
	if (getresuid(&real, &effective, &saved) || real != id || effective != id || saved != id)
		return "uid";
	if (getresgid(&group, &other, &third) || group != id || other != id || third != id)
		return "gid";
	if (rooted) {
		int fd = open("/tmp/secret", O_RDONLY);
		if (fd < 0 || read(fd, text, sizeof text) != 4 || strcmp(text, "kept"))
			return "tmpfs";
		close(fd);
	}
	return NULL;
}

static void serve(unsigned char *own, unsigned char *shared, unsigned seed, uid_t id, int rooted) {
	sigset_t asked;
	char name[16];
	unsigned count = 0;
	sigemptyset(&asked);
	sigaddset(&asked, SIGUSR1);
	for (;;) {
		snprintf(name, sizeof name, "ready %u", seed);
		if (!count)
			prctl(PR_SET_NAME, name);
		if (sigwaitinfo(&asked, NULL) < 0)
			continue;
		const char *bad = damage(own, shared, seed, id, rooted);
		snprintf(name, sizeof name, bad ? "bad %.8s" : "ok %.0s%u", bad ? bad : "", ++count);
		prctl(PR_SET_NAME, name);
	}
}

/* The first process, in its namespaces: begins two more, and tells the starter by descriptor `last`. */
static void inside(const char *secret_argument, int single, int last, int rooted) {
	sigset_t asked;
	sigemptyset(&asked);
	sigaddset(&asked, SIGUSR1);
	sigprocmask(SIG_SETMASK, &asked, NULL);
	unsigned char *shared = mmap(NULL, SHARED, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	unsigned char *own = mmap(NULL, PRIVATE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	fill(shared, SHARED, 99);
	fill(own, PRIVATE, 1);
	char *secret = strdup(secret_argument);
	unsigned seed = 1;
	uid_t id = 0;
	for (unsigned next = 2; next < 4; next++) {
		pid_t child = fork();
		if (child < 0)
			die("fork");
		if (child)
			continue;
		seed = next;
		id = single ? 0 : next * 1000;
		fill(own, PRIVATE, seed);
		if (!single && (setgroups(0, NULL) || setresgid(id, id, id) || setresuid(id, id, id)))
			die("cannot change the user");
		break;
	}
	if (seed == 1 && write(last, secret, 1) != 1)
		die("ready");
	for (int fd = 0; fd < 64; fd++)
		close(fd);
	serve(own, shared, seed, id, rooted);
}

int main(int argc, char **argv) {
	if (argc == 6 && !strcmp(argv[1], "inside")) {
		inside(argv[2], atoi(argv[3]), atoi(argv[4]), atoi(argv[5]));
		return 1;
	}
	if (argc < 3)
		return 2;
	const char *root = argc > 3 ? argv[3] : NULL;
	int ready[2], mapped[2];
	char go;
	if (pipe(ready) || pipe(mapped))
		die("pipe");
	unsigned long flags = CLONE_NEWUSER | CLONE_PARENT | SIGCHLD;
	if (root)
		flags |= CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS;
	pid_t pid = (pid_t)syscall(SYS_clone, flags, NULL, NULL, NULL, 0);
	if (pid < 0)
		die("clone");
	if (pid) {
		put(pid, "uid_map", argv[1]);
		put(pid, "gid_map", argv[1]);
		if (write(mapped[1], "x", 1) != 1 || (close(ready[1]), read(ready[0], &go, 1)) != 1)
			die("the first process did not become ready");
		printf("%d\n", pid);
		return 0;
	}
	if (read(mapped[0], &go, 1) != 1)
		die("no map");
	int single = strstr(argv[1], " 65536") == NULL;
	setsid();
	if ((!single && setgroups(0, NULL)) || setresgid(0, 0, 0) || setresuid(0, 0, 0))
		die("cannot become root");
	if (root)
		enter(root);
	else if (chdir("/"))
		die("/");
	/* Anew: else its memory belongs to the outer user namespace, and nobody in the inner one may look at it. */
	char last[16];
	snprintf(last, sizeof last, "%d", ready[1]);
	char *words[] = {"userns", "inside", argv[2], single ? "1" : "0", last, root ? "1" : "0", NULL};
	execv(root ? "/userns" : "/proc/self/exe", words);
	die("cannot start anew");
}
