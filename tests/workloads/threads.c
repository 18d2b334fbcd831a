/* Four threads, each three calls deep, for the tests of core files. */
#include <pthread.h>
#include <string.h>
#include <unistd.h>

static char password[64];
static int numbers[] = {10, 20, 30};

static void __attribute__((noinline)) deepest(int number)
{
    volatile int kept = number;
    for (;;)
        pause();
    (void)kept;
}

static void __attribute__((noinline)) middle(int number) { deepest(number + 1); }

static void *work(void *argument)
{
    middle(*(int *)argument);
    return 0;
}

int main(void)
{
    pthread_t thread;
    strcpy(password, "correct-horse");
    for (int n = 0; n < 3; n++)
        pthread_create(&thread, 0, work, &numbers[n]);
    middle(0);
}
