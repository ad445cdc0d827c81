/*
 * Watches from inside a guest whether being saved, restored and moved harms it.
 *
 *   pulse clocks STATUS [MICROSECONDS]   a thread on each CPU ticks and compares clocks across CPUs
 *   pulse disk STATUS JOURNAL [MICROSECONDS]   appends numbered, checksummed records, each made durable
 *   pulse verify JOURNAL                 says whether a journal is gapless and without repeats
 *   pulse tsc                            prints how fast this machine's time stamp counter runs, in kHz
 *   pulse memory STATUS MIB PAGES_PER_SECOND   rewrites pages of a working set and checks each before
 *   pulse watchdogs STATUS SECONDS ALARM   services that have to say in time that they live, as systemd's do,
 * and a timer that rings once, in ALARM seconds
 *
 * STATUS is a file, replaced as a whole about three times a second, of lines "name value".
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { CPUS_MAX = 64, PAGE = 4096, SECOND = 1000000000 };

static _Noreturn void die(const char *what)
{
	fprintf(stderr, "pulse: %s: %s\n", what, strerror(errno));
	exit(1);
}

static int64_t nanoseconds(clockid_t clock)
{
	struct timespec t;
	clock_gettime(clock, &t);
	return (int64_t)t.tv_sec * SECOND + t.tv_nsec;
}

static void sleep_until(int64_t monotonic)
{
	struct timespec t = {.tv_sec = monotonic / SECOND, .tv_nsec = monotonic % SECOND};
	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR) {
	}
}

static uint64_t mix(uint64_t x)
{
	/* The finalizer of SplitMix64 (Steele, Lea, Flood 2014). */
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
	return x ^ (x >> 31);
}

struct status {
	const char *path;
	char text[4096];
	size_t length;
};

static void put(struct status *status, const char *name, int64_t value)
{
	int n = snprintf(status->text + status->length, sizeof(status->text) - status->length, "%s %lld\n",
		name, (long long)value);
	status->length += (size_t)n;
}

/* Replaces the status file and starts an empty text. */
static void publish(struct status *status)
{
	char part[4096];
	snprintf(part, sizeof(part), "%s.part", status->path);
	int fd = open(part, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	if (fd < 0 || write(fd, status->text, status->length) != (ssize_t)status->length || close(fd) ||
		rename(part, status->path))
		die(status->path);
	status->length = 0;
}

/* ---- clocks ---- */

static const struct {
	const char *name;
	clockid_t clock;
} watched_clocks[] = {
	{"monotonic", CLOCK_MONOTONIC},
	{"boottime", CLOCK_BOOTTIME},
	{"realtime", CLOCK_REALTIME},
};
enum { CLOCKS = sizeof(watched_clocks) / sizeof(watched_clocks[0]) };

struct ticker {
	int cpu;
	int64_t interval;
	_Atomic int64_t ticks;
	_Atomic int64_t largest_gap; /* between two ticks, ns */
	_Atomic int64_t largest_gap_at;
};

static _Atomic int64_t latest[CLOCKS]; /* the latest time that any CPU has read */
static _Atomic int64_t backwards[CLOCKS];
static _Atomic int64_t backwards_most[CLOCKS]; /* ns */

static void raise_to(_Atomic int64_t *value, int64_t to)
{
	int64_t seen = atomic_load(value);
	while (seen < to && !atomic_compare_exchange_weak(value, &seen, to)) {
	}
}

/* A time read after another one, on whatever CPU, must not be before it. */
static void compare_clocks(void)
{
	for (int i = 0; i < CLOCKS; i++) {
		int64_t before = atomic_load(&latest[i]);
		int64_t now = nanoseconds(watched_clocks[i].clock);
		if (now < before) {
			atomic_fetch_add(&backwards[i], 1);
			raise_to(&backwards_most[i], before - now);
		}
		raise_to(&latest[i], now);
	}
}

static _Noreturn void *tick(void *argument)
{
	struct ticker *ticker = argument;
	cpu_set_t set;
	CPU_ZERO(&set);
	CPU_SET((size_t)ticker->cpu, &set);
	sched_setaffinity(0, sizeof(set), &set);
	int64_t last = nanoseconds(CLOCK_MONOTONIC);
	for (;;) {
		sleep_until(last + ticker->interval);
		for (int i = 0; i < 20; i++)
			compare_clocks();
		int64_t now = nanoseconds(CLOCK_MONOTONIC);
		if (now - last > atomic_load(&ticker->largest_gap)) {
			atomic_store(&ticker->largest_gap, now - last);
			atomic_store(&ticker->largest_gap_at, now);
		}
		atomic_fetch_add(&ticker->ticks, 1);
		last = now;
	}
}

static _Noreturn void watch_clocks(const char *path, int64_t interval)
{
	static struct ticker tickers[CPUS_MAX];
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	if (cpus > CPUS_MAX)
		cpus = CPUS_MAX;
	for (int i = 0; i < cpus; i++) {
		pthread_t thread;
		tickers[i].cpu = i;
		tickers[i].interval = interval;
		if (pthread_create(&thread, NULL, tick, &tickers[i]))
			die("pthread_create");
	}
	/* A periodic timer: what it counts must agree with the time that passes. */
	enum { PERIOD = 10000000 };
	int timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
	struct itimerspec period = {.it_value.tv_nsec = PERIOD, .it_interval.tv_nsec = PERIOD};
	int64_t start = nanoseconds(CLOCK_MONOTONIC);
	if (timer < 0 || timerfd_settime(timer, 0, &period, NULL))
		die("timerfd");
	int64_t counted = 0;
	int64_t published = 0;
	struct status status = {.path = path};
	for (;;) {
		/* The count is of a moment between `before` and `now`, which are far apart where this thread
		 * had to wait. */
		int64_t before = nanoseconds(CLOCK_MONOTONIC);
		uint64_t expirations = 0;
		if (read(timer, &expirations, sizeof(expirations)) != sizeof(expirations))
			die("timerfd");
		counted += (int64_t)expirations;
		int64_t now = nanoseconds(CLOCK_MONOTONIC);
		if (now - published < SECOND / 3)
			continue;
		published = now;
		int64_t largest = 0;
		int64_t largest_at = 0;
		int64_t ticks = 0;
		int64_t fewest = INT64_MAX;
		for (int i = 0; i < cpus; i++) {
			int64_t gap = atomic_load(&tickers[i].largest_gap);
			int64_t n = atomic_load(&tickers[i].ticks);
			if (gap > largest) {
				largest = gap;
				largest_at = atomic_load(&tickers[i].largest_gap_at);
			}
			ticks += n;
			fewest = n < fewest ? n : fewest;
		}
		put(&status, "cpus", cpus);
		put(&status, "monotonic_ns", now);
		put(&status, "realtime_ns", nanoseconds(CLOCK_REALTIME));
		put(&status, "ticks", ticks);
		put(&status, "fewest_ticks_of_a_cpu", fewest);
		put(&status, "largest_gap_us", largest / 1000);
		put(&status, "largest_gap_at_ns", largest_at);
		int64_t least = (before - start) / PERIOD - counted, most = (now - start) / PERIOD - counted;
		put(&status, "timer_periods_lost", least > 0 ? least : most < 0 ? most : 0);
		for (int i = 0; i < CLOCKS; i++) {
			char name[64];
			snprintf(name, sizeof(name), "%s_backwards", watched_clocks[i].name);
			put(&status, name, atomic_load(&backwards[i]));
			snprintf(name, sizeof(name), "%s_backwards_most_ns", watched_clocks[i].name);
			put(&status, name, atomic_load(&backwards_most[i]));
		}
		publish(&status);
	}
}

/* ---- disk ---- */

struct record {
	uint64_t number; /* from 1 */
	uint64_t written_at;
	uint64_t filler[5];
	uint64_t checksum;
};

static uint64_t checksum_of(const struct record *record)
{
	uint64_t sum = mix(record->number) ^ mix(record->written_at + 1);
	for (int i = 0; i < 5; i++)
		sum = mix(sum + record->filler[i]);
	return sum;
}

static _Noreturn void write_journal(const char *path, const char *journal, int64_t interval)
{
	int fd = open(journal, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0644);
	if (fd < 0)
		die(journal);
	struct status status = {.path = path};
	int64_t published = 0;
	int64_t longest = 0;
	for (uint64_t number = 1;; number++) {
		int64_t start = nanoseconds(CLOCK_MONOTONIC);
		struct record record = {.number = number, .written_at = (uint64_t)start};
		for (uint64_t i = 0; i < 5; i++)
			record.filler[i] = mix(number * 5 + i);
		record.checksum = checksum_of(&record);
		if (write(fd, &record, sizeof(record)) != sizeof(record) || fdatasync(fd))
			die(journal);
		int64_t now = nanoseconds(CLOCK_MONOTONIC);
		longest = now - start > longest ? now - start : longest;
		if (now - published >= SECOND / 3) {
			published = now;
			put(&status, "durable_records", (int64_t)number);
			put(&status, "longest_write_us", longest / 1000);
			publish(&status);
		}
		sleep_until(start + interval);
	}
}

static int verify_journal(const char *journal)
{
	FILE *file = fopen(journal, "rb");
	if (!file)
		die(journal);
	struct record record;
	uint64_t expected = 1;
	while (fread(&record, sizeof(record), 1, file) == 1) {
		if (record.checksum != checksum_of(&record)) {
			printf("record %llu is damaged\n", (unsigned long long)expected);
			return 1;
		}
		if (record.number != expected) {
			printf("record %llu found where %llu should be\n", (unsigned long long)record.number,
				(unsigned long long)expected);
			return 1;
		}
		expected++;
	}
	fclose(file);
	printf("gapless_records %llu\n", (unsigned long long)(expected - 1));
	return 0;
}

/* ---- time stamp counter ---- */

/* A reading of both clocks, taken as close together as they ever come. */
static void read_both(uint64_t *counter, int64_t *time)
{
	uint64_t closest = UINT64_MAX;
	for (int i = 0; i < 1000; i++) {
		uint64_t before = __builtin_ia32_rdtsc();
		int64_t now = nanoseconds(CLOCK_MONOTONIC_RAW);
		uint64_t after = __builtin_ia32_rdtsc();
		if (after - before < closest) {
			closest = after - before;
			*counter = before + (after - before) / 2;
			*time = now;
		}
	}
}

static int print_counter_frequency(void)
{
	uint64_t counter[2];
	int64_t time[2];
	read_both(&counter[0], &time[0]);
	sleep_until(nanoseconds(CLOCK_MONOTONIC) + 200000000);
	read_both(&counter[1], &time[1]);
	printf("%.0f\n", (double)(counter[1] - counter[0]) * 1e6 / (double)(time[1] - time[0]));
	return 0;
}

/* ---- memory ---- */

static void fill_page(uint64_t *page, uint64_t index, uint64_t generation)
{
	uint64_t seed = mix(index << 32 ^ generation);
	for (size_t i = 0; i < PAGE / sizeof(uint64_t); i++)
		page[i] = seed + i * 0x9e3779b97f4a7c15ull;
}

static bool page_is(const uint64_t *page, uint64_t index, uint64_t generation)
{
	uint64_t seed = mix(index << 32 ^ generation);
	for (size_t i = 0; i < PAGE / sizeof(uint64_t); i++) {
		if (page[i] != seed + i * 0x9e3779b97f4a7c15ull)
			return false;
	}
	return true;
}

static _Noreturn void dirty_memory(const char *path, size_t mib, int64_t rate)
{
	size_t pages = mib << 8;
	uint8_t *memory =
		mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint64_t *generations = calloc(pages, sizeof(*generations));
	if (memory == MAP_FAILED || !generations || pages == 0 || rate <= 0)
		die("working set");
	for (size_t i = 0; i < pages; i++)
		fill_page((uint64_t *)(void *)(memory + i * PAGE), i, 0);
	struct status status = {.path = path};
	int64_t written = 0;
	int64_t wrong = 0;
	int64_t published = 0;
	int64_t begun = nanoseconds(CLOCK_MONOTONIC);
	uint64_t random = 1;
	for (;;) {
		int64_t now = nanoseconds(CLOCK_MONOTONIC);
		int64_t due = (now - begun) / 1000 * rate / 1000000;
		/* After a standstill it goes on at its rate, without catching up. */
		if (due > written + rate / 10 + 1) {
			begun = now - written * SECOND / rate;
			due = written + 1;
		}
		for (; written < due; written++) {
			random = mix(random + 0x9e3779b97f4a7c15ull);
			size_t i = random % pages;
			uint64_t *page = (uint64_t *)(void *)(memory + i * PAGE);
			wrong += !page_is(page, i, generations[i]);
			fill_page(page, i, ++generations[i]);
		}
		if (now - published >= SECOND / 3) {
			published = now;
			for (size_t i = 0; i < 64; i++) {
				random = mix(random + 0x9e3779b97f4a7c15ull);
				size_t k = random % pages;
				wrong += !page_is((uint64_t *)(void *)(memory + k * PAGE), k, generations[k]);
			}
			put(&status, "pages", (int64_t)pages);
			put(&status, "pages_written", written);
			put(&status, "wrong_pages", wrong);
			publish(&status);
		}
		sleep_until(now + 5000000);
	}
}

/* ---- watchdogs ---- */

enum { SERVICES = 8 };

/* Says that it lives between a half and three quarters of the time that it has (systemd's sd-event.c,
 * arm_watchdog); like the timers there, those that need not be exact are put off to the latest moment. */
static _Noreturn void serve(int manager, int64_t limit)
{
	for (;;) {
		sleep_until(nanoseconds(CLOCK_MONOTONIC) + limit / 4 * 3);
		if (write(manager, "alive", 5) != 5)
			exit(1);
	}
}

static int timer_in(int64_t interval)
{
	int timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	struct itimerspec in = {.it_value = {.tv_sec = interval / SECOND, .tv_nsec = interval % SECOND}};
	if (timer < 0 || timerfd_settime(timer, 0, &in, NULL))
		die("timerfd");
	return timer;
}

/* As PID 1 does: what is ready is looked at in the order in which it has it, timers first. */
static _Noreturn void manage(const char *path, int64_t limit, int64_t alarm)
{
	struct pollfd ready[2 * SERVICES + 2];
	int64_t overdue = 0, rings = 0, alive = 0, longest = 0;
	struct status status = {.path = path};
	for (int i = 0; i < SERVICES; i++) {
		int ends[2];
		if (socketpair(AF_UNIX, SOCK_DGRAM, 0, ends))
			die("socketpair");
		pid_t child = fork();
		if (child < 0)
			die("fork");
		if (child == 0)
			serve(ends[1], limit);
		ready[i] = (struct pollfd){.fd = timer_in(limit), .events = POLLIN};
		ready[SERVICES + i] = (struct pollfd){.fd = ends[0], .events = POLLIN};
	}
	ready[2 * SERVICES] = (struct pollfd){.fd = timer_in(alarm), .events = POLLIN};
	ready[2 * SERVICES + 1] = (struct pollfd){.fd = timer_in(SECOND / 3), .events = POLLIN};
	for (int64_t last = nanoseconds(CLOCK_MONOTONIC);;) {
		uint64_t expirations;
		char text[8];
		if (poll(ready, 2 * SERVICES + 2, -1) < 0)
			die("poll");
		int64_t now = nanoseconds(CLOCK_MONOTONIC);
		longest = now - last > longest ? now - last : longest;
		last = now;
		for (int i = 0; i < SERVICES; i++) {
			struct itimerspec again = {
				.it_value = {.tv_sec = limit / SECOND, .tv_nsec = limit % SECOND}};
			if (read(ready[i].fd, &expirations, sizeof(expirations)) == sizeof(expirations))
				overdue++; /* systemd would kill it */
			if (recv(ready[SERVICES + i].fd, text, sizeof(text), MSG_DONTWAIT) <= 0)
				continue;
			alive++;
			timerfd_settime(ready[i].fd, 0, &again, NULL);
		}
		if (read(ready[2 * SERVICES].fd, &expirations, sizeof(expirations)) == sizeof(expirations))
			rings += (int64_t)expirations;
		if (read(ready[2 * SERVICES + 1].fd, &expirations, sizeof(expirations)) < 0)
			continue;
		close(ready[2 * SERVICES + 1].fd);
		ready[2 * SERVICES + 1].fd = timer_in(SECOND / 3);
		put(&status, "overdue", overdue);
		put(&status, "alive", alive);
		put(&status, "rings", rings);
		put(&status, "longest_ms", longest / 1000000);
		publish(&status);
	}
}

int main(int argc, char **argv)
{
	if (argc == 2 && strcmp(argv[1], "tsc") == 0)
		return print_counter_frequency();
	const char *mode = argc > 2 ? argv[1] : "";
	if (strcmp(mode, "clocks") == 0)
		watch_clocks(argv[2], argc > 3 ? atoll(argv[3]) * 1000 : 1000000);
	if (strcmp(mode, "disk") == 0 && argc > 3)
		write_journal(argv[2], argv[3], argc > 4 ? atoll(argv[4]) * 1000 : 10000000);
	if (strcmp(mode, "verify") == 0)
		return verify_journal(argv[2]);
	if (strcmp(mode, "memory") == 0 && argc > 4)
		dirty_memory(argv[2], (size_t)atoll(argv[3]), atoll(argv[4]));
	if (strcmp(mode, "watchdogs") == 0 && argc > 4)
		manage(argv[2], atoll(argv[3]) * SECOND, atoll(argv[4]) * SECOND);
	fprintf(stderr, "usage: pulse clocks STATUS [MICROSECONDS] | disk STATUS JOURNAL [MICROSECONDS] |\n"
			"       verify JOURNAL | tsc | memory STATUS MIB PAGES_PER_SECOND |\n"
			"       watchdogs STATUS SECONDS ALARM\n");
	return 2;
}
