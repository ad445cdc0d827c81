#include "xend/processor.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "base/printable.h"
#include "xend/guest.h"
#include "xend/process.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/stat.h>

#define TELL_MS 30000
#define TOLD_MAX 65536

/* All that the process writes until it ends. */
static size_t read_all(int output, char *text, size_t size)
{
	size_t length = 0;

	for (;;) {
		struct pollfd ready = {.fd = output, .events = POLLIN};
		ssize_t n = poll(&ready, 1, TELL_MS) > 0 ? read(output, text + length, size - length) : 0;

		if (n <= 0)
			return length;
		length += (size_t)n;
	}
}

static int start_teller(const struct xend *xend, int kvm, int output, struct error *error)
{
	char program[320], user[32], root[PATHS_EMPTY_MAX];
	const char *const arguments[] = {program, "--features", "3", "--user", user, "--root", root, NULL};
	struct spawn spawn = {.arguments = arguments, .pass = kvm, .output = output, .own_network = true};
	pid_t pid;

	snprintf(program, sizeof(program), "%s/ferry-guest", xend->paths.libexec);
	snprintf(user, sizeof(user), "%u:%u", GUEST_UID_BASE, GUEST_UID_BASE);
	paths_empty(&xend->paths, root);
	return process_spawn(&spawn, &pid, error);
}

/* A new object: features, needs, tsc_khz, tsc_scaling. */
static int ask_features(const struct xend *xend, json_t **answer, struct error *error)
{
	_cleanup_close_ int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC), process = -1, output = -1;
	_cleanup_free_ char *text = malloc(TOLD_MAX);
	_cleanup_json_ json_t *told = NULL;
	int ends[2];

	if (kvm < 0 || !text || pipe2(ends, O_CLOEXEC) < 0)
		return error_set(error, errno, "Unable to ask what this host's processor can do: %s.",
			strerror(errno));
	output = ends[0];
	process = start_teller(xend, kvm, ends[1], error);
	close(ends[1]);
	if (process < 0)
		return process;
	told = json_loadb(text, read_all(output, text, TOLD_MAX), 0, NULL);
	if (process_wait(process, TELL_MS, NULL) < 0)
		process_kill(process);
	*answer = json_incref(told);
	return json_is_array(json_object_get(told, "features"))
		       ? 0
		       : error_set(error, EIO,
				 "What this host's processor can do, its ferry-guest does not tell.");
}

/*
 * What the answer depends on while this host is up: the program that gives it, and KVM's modules, whose
 * directories are others once they were loaded anew. False: it cannot be told.
 */
static bool look_at_sources(const struct xend *xend, struct processor_source sources[PROCESSOR_SOURCES])
{
	static const char *const modules[] = {
		"/sys/module/kvm", "/sys/module/kvm_amd", "/sys/module/kvm_intel"};
	char program[320];
	unsigned found = 0;

	_Static_assert(ARRAY_SIZE(modules) + 1 == PROCESSOR_SOURCES, "a place for each source");
	memset(sources, 0, PROCESSOR_SOURCES * sizeof(*sources));
	snprintf(program, sizeof(program), "%s/ferry-guest", xend->paths.libexec);
	for (unsigned i = 0; i < PROCESSOR_SOURCES; i++) {
		struct stat status;

		if (stat(i == 0 ? program : modules[i - 1], &status) < 0)
			continue;
		sources[i].inode = status.st_ino;
		sources[i].changed_s = status.st_ctim.tv_sec;
		sources[i].changed_ns = status.st_ctim.tv_nsec;
		found += i > 0;
	}
	return found > 0;
}

/* A new reference to what this host can do: as it was told before, unless that may be out of date. */
static int know_features(struct xend *xend, json_t **answer, struct error *error)
{
	struct known_processor *known = &xend->processor;
	struct processor_source sources[PROCESSOR_SOURCES];
	bool lasting = look_at_sources(xend, sources);
	int r;

	xend_lock(xend);
	if (lasting && known->answer && memcmp(known->sources, sources, sizeof(sources)) == 0)
		*answer = json_incref(known->answer);
	xend_unlock(xend);
	if (*answer)
		return 0;
	r = ask_features(xend, answer, error);
	if (r < 0 || !lasting)
		return r;
	xend_lock(xend);
	json_decref(known->answer);
	known->answer = json_incref(*answer);
	memcpy(known->sources, sources, sizeof(sources));
	xend_unlock(xend);
	return 0;
}

static bool has(const json_t *names, const char *name)
{
	for (size_t i = 0; i < json_array_size(names); i++) {
		const char *one = json_string_value(json_array_get(names, i));

		if (one && strcmp(one, name) == 0)
			return true;
	}
	return false;
}

/* Appends what of `member` the guest has and this host has not. */
static void name_missing(
	const json_t *here, const json_t *seen, const char *member, char *missing, size_t size)
{
	const json_t *names = json_object_get(seen, member);

	for (size_t i = 0; i < json_array_size(names); i++) {
		const char *name = json_string_value(json_array_get(names, i));
		size_t length = strlen(missing);

		if (name && !has(json_object_get(here, member), name))
			snprintf(missing + length, size - length, "%s%s", length ? ", " : "", name);
	}
}

static bool can_run_at(const json_t *here, json_int_t khz)
{
	json_int_t own = json_integer_value(json_object_get(here, "tsc_khz"));
	json_int_t apart = khz > own ? khz - own : own - khz;

	/* As exact as KVM takes for the same (module parameter tsc_tolerance_ppm of kvm). */
	return khz <= 0 || own <= 0 || json_is_true(json_object_get(here, "tsc_scaling")) ||
	       apart <= own / 1000000 * 250;
}

static void object(json_t *objections, const struct error *error)
{
	json_array_append_new(objections, printable_sentence(error->text));
}

void processor_check(struct xend *xend, const json_t *seen, bool any_frequency, json_t *objections)
{
	_cleanup_json_ json_t *here = NULL;
	json_int_t khz = json_integer_value(json_object_get(seen, "tsc_khz"));
	char missing[512] = "";
	struct error error;

	if (!json_array_size(json_object_get(seen, "features")))
		return;
	if (know_features(xend, &here, &error) < 0) {
		object(objections, &error);
		return;
	}
	name_missing(here, seen, "features", missing, sizeof(missing));
	name_missing(here, seen, "needs", missing, sizeof(missing));
	if (*missing) {
		error_set(&error, EOPNOTSUPP,
			"This host's processor lacks features that the guest uses: %s. Run the guest on a "
			"host that has them.",
			missing);
		object(objections, &error);
	}
	if (!any_frequency && !can_run_at(here, khz)) {
		error_set(&error, EOPNOTSUPP,
			"The guest's time-stamp counter runs at %.3f MHz, this host's at %.3f MHz, and its "
			"processor cannot scale it: whatever in the guest measures time by it would be "
			"wrong. Run the guest on a host that has one of these, or take this one with "
			"--accept=clock (the guest's clock, kvmclock, is right all the same).",
			(double)khz / 1000,
			(double)json_integer_value(json_object_get(here, "tsc_khz")) / 1000);
		object(objections, &error);
	}
}

static void ask_ahead(void *argument)
{
	struct xend *xend = argument;
	_cleanup_json_ json_t *features = NULL;
	struct error error;

	xend_unlock(xend);
	/* Not of interest before a guest comes, and then it is asked again. */
	if (know_features(xend, &features, &error) < 0)
		log_debug("%s", error.text);
	xend_lock(xend);
}

void processor_ask_ahead(struct xend *xend)
{
	struct error error;

	if (xend_worker(xend, ask_ahead, xend, &error) < 0)
		log_debug("%s", error.text);
}
