#include "xend/endings.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "xend/guest.h"
#include "xend/store.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#define CONSOLE_MAX 4096 /* bytes of it that are kept */
#define CONSOLE_MS 500   /* for all of the history to come */
#define ANSWER_MS 1000

/* What the guest's process has kept of its console is asked of it while it is there. Lets go of the lock. */
static void read_console(struct domain *domain, char text[CONSOLE_MAX + 1])
{
	_cleanup_json_ json_t *request =
		json_pack("{s:s, s:{s:i}, s:b}", "do", "console", "stream", "fd", 0, "history", 1);
	_cleanup_close_ int control = domain->dead ? -1 : guest_connect(domain, NULL), ours = -1, theirs = -1;
	long long deadline, left;
	size_t size = 0;
	int pair[2];

	text[0] = 0;
	if (control < 0 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
		return;
	ours = pair[0];
	theirs = pair[1];
	xend_unlock(domain->xend);
	deadline = monotonic_ms() + CONSOLE_MS;
	if (channel_call(control, request, &theirs, 1, NULL, ANSWER_MS, NULL) >= 0)
		while ((left = deadline - monotonic_ms()) > 0) {
			struct pollfd ready = {.fd = ours, .events = POLLIN};
			char bytes[CONSOLE_MAX];
			ssize_t n;

			/* The history comes at once; what comes no more is not waited for. */
			if (poll(&ready, 1, left < 50 ? (int)left : 50) <= 0)
				break;
			n = recv(ours, bytes, sizeof(bytes), MSG_DONTWAIT);
			if (n <= 0)
				break;
			if (size + (size_t)n > CONSOLE_MAX) {
				size_t drop = size + (size_t)n - CONSOLE_MAX;

				memmove(text, text + drop, size - drop);
				size -= drop;
			}
			memcpy(text + size, bytes, (size_t)n);
			size += (size_t)n;
		}
	xend_lock(domain->xend);
	text[size] = 0;
}

/* A guest may have written anything; what people read has lines and no control characters. */
static void make_readable(char *text)
{
	char *to = text;

	for (const char *from = text; *from; from++)
		if (*from == '\n' || *from == '\t' || (*from >= ' ' && *from < 127))
			*to++ = *from;
		else if (*from != '\r')
			*to++ = '?';
	*to = 0;
}

static void record(const struct domain *domain, const struct stored_ending *ending)
{
	struct stored_ending stored = *ending;
	struct error error;

	stored.name = domain->config.name;
	stored.uuid = domain->config.uuid;
	stored.id = domain->id;
	if (store_put_ending(domain->xend->store, &stored, ENDINGS_MAX, &error) < 0)
		log_warning("How domain '%s' ended is not kept: %s", domain->config.name, error.text);
}

void ending_by_itself(struct domain *domain, const char *then)
{
	static const char *const reasons[] = {[REASON_NONE] = "crash",
		[REASON_POWEROFF] = "poweroff",
		[REASON_REBOOT] = "reboot",
		[REASON_CRASH] = "crash",
		[REASON_ERROR] = "error"};
	bool shutdown = domain->state == GUEST_SHUTDOWN;
	char console[CONSOLE_MAX + 1], exit[64] = "", detail[sizeof(domain->detail)];
	int status = 0;

	snprintf(detail, sizeof(detail), "%s", domain->detail);
	read_console(domain, console);
	make_readable(console);
	make_readable(detail);
	if (domain->dead && domain->process >= 0 && process_wait(domain->process, 0, &status) >= 0)
		process_describe_end(status, exit, sizeof(exit));
	record(domain, &(struct stored_ending){.reason = shutdown ? reasons[domain->reason] : "process",
			       .exit = exit,
			       .detail = detail,
			       .then = then,
			       .file = "",
			       .console = console});
}

void ending_by_order(const struct domain *domain, const char *reason, const char *file, const char *detail)
{
	record(domain, &(struct stored_ending){.reason = reason,
			       .exit = "",
			       .detail = detail ? detail : "",
			       .then = "",
			       .file = file ? file : "",
			       .console = ""});
}

static const struct {
	const char *reason, *words, *state;
} endings[] = {
	{"poweroff", "It powered off", "---s--"},
	{"reboot", "It rebooted and was not started again", "---s--"},
	{"crash", "It crashed", "----c-"},
	{"error", "It could not go on", "----c-"},
	{"process", "Its process ended unexpectedly", "----c-"},
	{"destroyed", "It was destroyed", "---s--"},
	{"saved", "It was saved", "---s--"},
	{"lost", "It could not be started again", "---s--"},
};

static size_t kind_of(const struct stored_ending *ending)
{
	size_t kind = 0;

	while (kind + 1 < ARRAY_SIZE(endings) && strcmp(endings[kind].reason, ending->reason) != 0)
		kind++;
	return kind;
}

static void clock_text(int64_t at, char *text, size_t size)
{
	time_t seconds = (time_t)at;
	struct tm broken;

	*text = 0;
	if (localtime_r(&seconds, &broken))
		strftime(text, size, "%Y-%m-%d %H:%M:%S", &broken);
}

struct hint {
	char *sentence;
	size_t size;
	const char *asked;
};

static int add_hint(void *context, const struct stored_ending *ending)
{
	struct hint *hint = context;
	char when[64];

	clock_text(ending->ended_at, when, sizeof(when));
	snprintf(hint->sentence + strlen(hint->sentence), hint->size - strlen(hint->sentence),
		" %s%s%.1000s at %s%s%.300s. xm log %s tells more.", endings[kind_of(ending)].words,
		*ending->file ? " to " : "", ending->file, when, *ending->detail ? ": " : "", ending->detail,
		hint->asked);
	return 0;
}

void endings_add(struct xend *xend, const char *name_or_id, char *sentence, size_t size)
{
	struct hint hint = {sentence, size, name_or_id};
	struct error error;

	if (store_find_ending(xend->store, name_or_id, add_hint, &hint, &error) < 0)
		log_error("%s", error.text);
}

static int take_time(void *context, const struct stored_ending *ending)
{
	*(int64_t *)context = ending->ended_at;
	return 0;
}

int64_t endings_at(struct xend *xend, const char *name_or_id)
{
	int64_t at = 0;

	store_find_ending(xend->store, name_or_id, take_time, &at, NULL);
	return at;
}

static int describe(void *context, const struct stored_ending *ending)
{
	json_t **described = context;

	*described = json_pack("{s:s, s:s, s:i, s:I, s:s, s:s, s:s, s:s, s:s, s:s, s:s}", "name",
		ending->name, "uuid", ending->uuid, "id", (int)ending->id, "ended_at",
		(json_int_t)ending->ended_at, "state", endings[kind_of(ending)].state, "reason",
		ending->reason, "exit", ending->exit, "detail", ending->detail, "then", ending->then, "file",
		ending->file, "console", ending->console);
	return 0;
}

json_t *endings_describe(struct xend *xend, const char *name_or_id, struct error *error)
{
	json_t *described = NULL;

	if (store_find_ending(xend->store, name_or_id, describe, &described, error) < 0)
		return NULL;
	if (!described)
		error_set(error, ENOENT, "Of an end of domain '%s' here nothing is known.", name_or_id);
	return described;
}
