#include "xend/silence.h"
#include "base/channel.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "xend/adopt.h"
#include "xend/filling.h"
#include "xend/guest.h"
#include "xend/guest_watch.h"
#include "xend/supervise.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <time.h>

#define PATIENCE_MS 5000 /* a busy host makes a guest late */
#define AGAIN_MS 1000    /* until it is looked who else is silent by now */

static bool is_alive(const struct domain *domain)
{
	return domain->phase == DOMAIN_LIVE && !domain->dead && domain->process >= 0;
}

static bool is_silent(const struct domain *domain)
{
	return domain->silent_ms && is_alive(domain);
}

/* What the kernel says of the process: field 3 of /proc/pid/stat (proc(5)). */
static const char *state_of(pid_t pid)
{
	static const struct {
		char state;
		const char *words;
	} states[] = {{'T', "is stopped (signal)"}, {'t', "is stopped (debugger)"},
		{'D', "waits in the kernel, for storage or memory"}};
	char path[64], line[1024], *rest;
	_cleanup_fclose_ FILE *file = NULL;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	file = fopen(path, "re");
	rest = file && fgets(line, sizeof(line), file) ? strrchr(line, ')') : NULL;
	for (size_t i = 0; rest && rest[1] && i < ARRAY_SIZE(states); i++)
		if (rest[2] == states[i].state)
			return states[i].words;
	return "lives";
}

int silence_check(const struct domain *domain, struct error *error)
{
	long long silent_ms = domain->silent_ms ? monotonic_ms() - domain->silent_ms : 0;
	time_t since = time(NULL) - (time_t)(silent_ms / 1000);
	struct tm local;
	char text[16];

	if (!is_alive(domain) || (domain->events >= 0 && silent_ms < PATIENCE_MS))
		return 0;
	localtime_r(&since, &local);
	strftime(text, sizeof(text), "%H:%M:%S", &local);
	return error_set(error, EBUSY,
		"Domain '%s' does not answer since %s: its process %d %s. It is left alone; it can be "
		"destroyed, anything else has to wait until it answers.",
		domain->config.name, text, (int)domain->pid, state_of(domain->pid));
}

static void ask_no_more(struct domain *domain)
{
	cleanup_close(&domain->question);
	domain->question = -1;
}

/* It answers again, or has never been heard by this xend: adopt.c does what has to be done about it. */
static void has_answered(struct domain *domain, const json_t *answer)
{
	struct error error;

	log_info("Domain '%s' (ID %u) answers again, after %lld s.", domain->config.name, domain->id,
		(monotonic_ms() - domain->silent_ms) / 1000);
	domain->silent_ms = 0;
	guest_note_state(domain, answer);
	if (xend_worker(domain->xend, adopt_guest, domain_ref(domain), &error) < 0) {
		domain_unref(domain);
		silence_begin(domain, 0); /* once more, in a moment */
	}
}

/* One that was never met: its end is seen by nobody else. */
static void has_ended(struct domain *domain)
{
	domain->dead = true;
	xend_changed(domain->xend);
	supervise(domain);
}

struct round {
	struct pollfd *ready;    /* the stop, then of each domain its answer and its end */
	struct domain **domains; /* referenced */
	size_t count;
};

static int begin_round(struct xend *xend, struct round *round)
{
	size_t count = 0;

	for (struct domain *domain = xend->domains; domain; domain = domain->next)
		count++;
	*round = (struct round){.ready = calloc(2 * count + 1, sizeof(*round->ready)),
		.domains = calloc(count + 1, sizeof(*round->domains))};
	if (!round->ready || !round->domains)
		return -ENOMEM;
	round->ready[0] = (struct pollfd){.fd = xend->stop, .events = POLLIN};
	for (struct domain *domain = xend->domains; domain; domain = domain->next) {
		struct pollfd *ready = &round->ready[1 + 2 * round->count];

		if (!is_silent(domain))
			continue;
		if (domain->question < 0 && monotonic_ms() >= domain->ask_again_ms)
			domain->question = guest_question(domain);
		ready[0] = (struct pollfd){.fd = domain->question, .events = POLLIN};
		/* A descriptor of the round's own: guest_end may close the domain's meanwhile. */
		ready[1] = (struct pollfd){
			.fd = domain->events < 0 ? fcntl(domain->process, F_DUPFD_CLOEXEC, 0) : -1,
			.events = POLLIN};
		round->domains[round->count++] = domain_ref(domain);
	}
	return 0;
}

static void look_at(struct domain *domain, const struct pollfd ready[2])
{
	_cleanup_message_ struct message answer = {0};
	int r;

	if (!is_silent(domain))
		return;
	if (ready[1].revents)
		has_ended(domain);
	else if (domain->events < 0)
		filling_look_after_silent(domain);
	if (!ready[0].revents || !is_silent(domain))
		return;
	r = channel_receive(domain->question, &answer, NULL);
	ask_no_more(domain);
	if (r >= 0)
		has_answered(domain, answer.body);
}

static void end_round(struct round *round)
{
	for (size_t i = 0; i < round->count; i++) {
		struct domain *domain = round->domains[i];
		struct pollfd *ready = &round->ready[1 + 2 * i];

		look_at(domain, ready);
		cleanup_close(&ready[1].fd);
		if (!is_silent(domain) && domain->question >= 0)
			ask_no_more(domain);
		domain_unref(domain);
	}
	free(round->ready);
	free(round->domains);
}

static void listen_for_silent(void *argument)
{
	struct xend *xend = argument;
	struct round round;
	bool more = true;

	while (more && !xend->stopping) {
		if (begin_round(xend, &round) < 0) {
			free(round.ready);
			free(round.domains);
			break;
		}
		more = round.count;
		if (more) {
			xend_unlock(xend);
			poll(round.ready, 2 * round.count + 1, AGAIN_MS);
			xend_lock(xend);
		}
		end_round(&round);
	}
	xend->listening_for_silent = false;
}

void silence_begin(struct domain *domain, long long already_ms)
{
	struct xend *xend = domain->xend;
	struct error error;

	if (domain->phase != DOMAIN_LIVE || domain->dead || domain->process < 0)
		return;
	if (!domain->silent_ms)
		domain->silent_ms = monotonic_ms() - already_ms;
	if (xend->listening_for_silent)
		return;
	xend->listening_for_silent = true;
	if (xend_worker(xend, listen_for_silent, xend, &error) < 0) {
		xend->listening_for_silent = false;
		log_error("Guests that do not answer are not waited for now: %s", error.text);
	}
}
