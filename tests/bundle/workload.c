/* Shared memory, a thread, and a counter that both increase: says on request whether all is as it was.
 * The file named by its argument always holds "COUNT INTACT", INTACT being 1 while both see the same memory. */
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static volatile unsigned *shared;

static void *count(void *unused)
{
    for (;;) {
        shared[0]++;
        usleep(20000);
    }
    return unused;
}

int main(int argc, char **argv)
{
    pthread_t thread;
    char text[64];
    unsigned i;
    int fd;

    if (argc != 2 || setsid() < 0) return 1;
    shared = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) return 1;
    for (i = 1; i < (1 << 18); i++) shared[i] = i * 2654435761u;
    if (pthread_create(&thread, NULL, count, NULL)) return 1;
    for (;;) {
        int intact = 1;
        for (i = 1; i < (1 << 18); i++) intact &= shared[i] == i * 2654435761u;
        fd = open(argv[1], O_WRONLY | O_CREAT | O_TRUNC, 0600);
        if (fd < 0) return 1;
        write(fd, text, (size_t)snprintf(text, sizeof text, "%u %d", shared[0], intact));
        close(fd);
        usleep(20000);
    }
}
