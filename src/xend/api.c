#include "xend/api.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "xend/endings.h"
#include "xend/guest.h"
#include "xend/handover.h"
#include "xend/jobs.h"
#include "xend/lifecycle.h"
#include "xend/moves.h"
#include "xend/watch.h"
#include "xend/objections.h"
#include "xend/silence.h"

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>

#define MIGRATE_MS_MAX 86400000 /* a day: of a limit on a migration */

/* The request's <D>, or an answer that says why not. `what` completes "cannot be …" for Domain-0. */
static struct domain *call_domain(struct call *call, const char *what)
{
	struct domain *domain;
	struct error error;

	if (strcmp(call->domain, "0") == 0 || strcmp(call->domain, "Domain-0") == 0)
		error_set(&error, EINVAL, "Domain-0 is the host itself and cannot be %s.", what);
	else if (domain_find(call->xend, call->domain, &domain, &error) >= 0)
		return domain;
	reply_error(call->reply, &error);
	return NULL;
}

static void answer(struct call *call, int r, const struct error *error)
{
	if (r < 0)
		reply_error(call->reply, error);
	else
		reply_json(call->reply, 200, json_object());
}

/* Reads the body's members (jansson's format), or answers what is wrong with them. */
#define CALL_BODY(call, format, ...)                                                                         \
	({                                                                                                   \
		json_error_t reason_;                                                                        \
		struct error error_;                                                                         \
		int bad_ = json_unpack_ex((call)->body, &reason_, 0, format, __VA_ARGS__);                   \
		if (bad_) {                                                                                  \
			error_set(&error_, EINVAL, "The request's body is not as it should be: %s.",         \
				reason_.text);                                                               \
			reply_error((call)->reply, &error_);                                                 \
		}                                                                                            \
		!bad_;                                                                                       \
	})

static void list(struct call *call)
{
	json_t *domains = json_array();

	guest_refresh(call->xend);
	json_array_append_new(domains, domain_describe_host(call->xend));
	for (struct domain *domain = call->xend->domains; domain; domain = domain->next)
		if (!domain_has_left(domain))
			json_array_append_new(domains, domain_describe(domain));
	reply_json(call->reply, 200, json_pack("{s:o}", "domains", domains));
}

static void show(struct call *call)
{
	_cleanup_domain_ struct domain *domain = NULL;

	if (strcmp(call->domain, "0") == 0 || strcmp(call->domain, "Domain-0") == 0) {
		reply_json(call->reply, 200, domain_describe_host(call->xend));
		return;
	}
	domain = call_domain(call, "shown");
	if (!domain)
		return;
	if (domain->phase == DOMAIN_LIVE && !domain->dead && !domain->silent_ms)
		guest_refresh_one(domain, NULL);
	reply_json(call->reply, 200, domain_describe(domain));
}

static void create(struct call *call)
{
	_cleanup_guest_config_ struct guest_config config = {0};
	_cleanup_domain_ struct domain *domain = NULL;
	int paused = false, dryrun = false, r;
	const json_t *json;
	struct error error;

	if (!CALL_BODY(call, "{s:o, s?b, s?b}", "config", &json, "paused", &paused, "dryrun", &dryrun))
		return;
	r = guest_config_from_json(&config, json, &error);
	if (r >= 0)
		r = guest_config_complete(&config, &error);
	if (r >= 0 && dryrun)
		r = lifecycle_check(call->xend, &config, &error);
	if (r >= 0 && dryrun) {
		reply_json(call->reply, 200,
			json_pack(
				"{s:s, s:o}", "name", config.name, "config", guest_config_to_json(&config)));
		return;
	}
	if (r >= 0)
		r = lifecycle_create(call->xend, &config, paused, &domain, &error);
	if (r < 0) {
		log_warning("A guest was not created: %s", error.text);
		reply_error(call->reply, &error);
	} else {
		json_t *created = domain_describe(domain);

		if (domain->warnings)
			json_object_set(created, "warnings", domain->warnings);
		reply_json(call->reply, 201, created);
	}
}

/* What is asked of a guest between two moments of its run, when no job has it. */
static void ask_guest(
	struct call *call, const char *what, int (*ask)(struct domain *domain, struct error *error))
{
	_cleanup_domain_ struct domain *domain = call_domain(call, what);
	struct error error;
	int r;

	if (!domain)
		return;
	r = domain_begin_job(domain, what, -1, &error);
	if (r >= 0) {
		r = ask(domain, &error);
		domain_end_job(domain);
	}
	answer(call, r, &error);
}

/* Recorded first: what cannot be recorded does not happen. */
static int record_paused(struct domain *domain, bool paused, struct error *error)
{
	bool before = domain->paused;
	int r;

	domain->paused = paused;
	r = domain_record(domain, error);
	if (r < 0)
		domain->paused = before;
	return r;
}

static int do_pause(struct domain *domain, struct error *error)
{
	bool before = domain->paused;
	int r;

	if (domain->paused && domain->state == GUEST_PAUSED)
		return error_set(error, EINVAL, "Domain '%s' is paused already.", domain->config.name);
	r = record_paused(domain, true, error);
	if (r >= 0) {
		r = guest_pause(domain, error);
		if (r < 0)
			record_paused(domain, before, NULL);
	}
	return r;
}

static int do_unpause(struct domain *domain, struct error *error)
{
	bool before = domain->paused;
	int r;

	if (!domain->paused && domain->state == GUEST_RUNNING)
		return error_set(error, EINVAL, "Domain '%s' is not paused.", domain->config.name);
	r = record_paused(domain, false, error);
	if (r >= 0) {
		r = guest_resume(domain, false, error);
		if (r < 0)
			record_paused(domain, before, NULL);
	}
	return r;
}

static void pause_domain(struct call *call)
{
	ask_guest(call, "being paused", do_pause);
}

static void unpause_domain(struct call *call)
{
	ask_guest(call, "being unpaused", do_unpause);
}

static int ask_to_end(struct domain *domain, bool restart, struct error *error)
{
	int64_t before = domain->restart_wanted_ns;
	int r = restart ? lifecycle_check_restart(domain, error) : 0;

	/* It lets go of the lock. */
	if (r >= 0)
		r = domain_check_lives(domain, error);
	if (r < 0)
		return r;
	/* What is wanted is known before the guest is: it may have ended by the time that it answers. */
	domain_want_restart(domain, restart);
	r = domain_record(domain, error);
	r = r < 0 ? r : guest_power_button(domain, error);
	if (r >= 0) {
		log_info("Domain '%s' (ID %u) is asked to %s.", domain->config.name, domain->id,
			restart ? "reboot" : "shut down");
	} else if (domain->phase == DOMAIN_LIVE) {
		domain->restart_wanted_ns = before;
		domain_record(domain, NULL);
	}
	return r;
}

/*
 * The power button may be pressed whatever else goes on; a guest that stands still sees it later. But whether
 * it is to reboot is told at the beginning of a save or a migration, to whoever has it then.
 */
static void press_button(struct call *call, const char *what, bool restart)
{
	_cleanup_domain_ struct domain *domain = call_domain(call, what);
	struct error error;
	int r;

	if (!domain)
		return;
	r = domain_check_lives(domain, &error);
	if (r >= 0 && domain->paused)
		r = error_set(&error, EBUSY, "Domain '%s' is paused and cannot be %s; unpause it first.",
			domain->config.name, what);
	if (r >= 0 && restart != domain_restart_is_wanted(domain))
		r = domain_check_free(domain, &error);
	if (r >= 0)
		r = silence_check(domain, &error);
	if (r >= 0)
		r = ask_to_end(domain, restart, &error);
	answer(call, r, &error);
}

static void shutdown_domain(struct call *call)
{
	press_button(call, "shut down", false);
}

static void reboot_domain(struct call *call)
{
	press_button(call, "rebooted", true);
}

static void destroy(struct call *call)
{
	_cleanup_domain_ struct domain *domain = call_domain(call, "destroyed");
	struct error error;

	if (domain)
		answer(call, lifecycle_destroy(domain, &error), &error);
}

static void rename_domain(struct call *call)
{
	_cleanup_domain_ struct domain *domain = NULL;
	const char *name;
	struct error error;
	int r;

	if (!CALL_BODY(call, "{s:s}", "name", &name))
		return;
	domain_await_leavers(call->xend);
	domain = call_domain(call, "renamed");
	if (!domain)
		return;
	/* What is kept may make room for another of its name. */
	if (domain->preserved && !domain->busy) {
		answer(call, domain_rename(domain, name, &error), &error);
		return;
	}
	r = domain_begin_job(domain, "being renamed", -1, &error);
	if (r >= 0) {
		r = domain_rename(domain, name, &error);
		domain_end_job(domain);
	}
	answer(call, r, &error);
}

static void save(struct call *call)
{
	_cleanup_domain_ struct domain *domain = NULL;
	int keep = false, live = false, force = false, compress = false;
	struct save_options options = {0};

	if (!CALL_BODY(call, "{s:s, s?b, s?b, s?b, s?b}", "file", &options.file, "keep", &keep, "live", &live,
		    "force", &force, "compress", &compress))
		return;
	options.keep = keep;
	options.live = live;
	options.force = force;
	options.compress = compress;
	domain = call_domain(call, "saved");
	if (domain)
		job_save(domain, &options, call->reply);
}

static void restore(struct call *call)
{
	struct restore_options options = {0};
	int paused = false, eager = false;
	struct error error;

	if (!CALL_BODY(call, "{s:s, s?b, s?b, s?s, s?o, s?o, s?o}", "file", &options.file, "paused", &paused,
		    "eager", &eager, "name", &options.clone.name, "disk", &options.clone.disk, "vif",
		    &options.clone.vif, "accept", &options.accept))
		return;
	if (objections_check_accepted(options.accept, true, &error) < 0) {
		reply_error(call->reply, &error);
		return;
	}
	options.paused = paused;
	options.eager = eager;
	job_restore(call->xend, &options, call->reply);
}

static bool is_one_of(const char *word, const char *const *words)
{
	while (*words && strcmp(*words, word) != 0)
		words++;
	return *words;
}

static void migrate(struct call *call)
{
	static const char *const on_stall[] = {"stop", "cancel", NULL}, *const compress[] = {
										"auto", "yes", "no", NULL};
	_cleanup_domain_ struct domain *domain = NULL;
	json_int_t port = 0, rate = 0, max_downtime = 0, timeout = 0;
	int live = false, dryrun = false, detach = false;
	struct migrate_options options = {.on_stall = "stop", .compress = "auto"};
	struct error error;

	if (!CALL_BODY(call, "{s:s, s?b, s?I, s?b, s?I, s?I, s?I, s?s, s?s, s?b, s?o}", "host", &options.host,
		    "dryrun", &dryrun, "port", &port, "live", &live, "rate_mbit", &rate, "max_downtime_ms",
		    &max_downtime, "timeout_s", &timeout, "on_stall", &options.on_stall, "compress",
		    &options.compress, "detach", &detach, "accept", &options.accept))
		return;
	if (port < 0 || port > 65535 || rate < 0 || rate > 1000000 || !*options.host ||
		strlen(options.host) > 253 || max_downtime < 0 || max_downtime > MIGRATE_MS_MAX ||
		timeout < 0 || timeout > MIGRATE_MS_MAX / 1000 || !is_one_of(options.on_stall, on_stall) ||
		!is_one_of(options.compress, compress)) {
		error_set(&error, EINVAL, "The migration's host, port, rate or limits are none.");
		reply_error(call->reply, &error);
		return;
	}
	if (objections_check_accepted(options.accept, false, &error) < 0) {
		reply_error(call->reply, &error);
		return;
	}
	options.port = port ? (unsigned)port : (unsigned)call->xend->config.relocation_port;
	options.live = live;
	options.detach = detach;
	options.rate_mbit = (unsigned)rate;
	options.max_downtime_ms = (unsigned)max_downtime;
	options.timeout_s = (unsigned)timeout;
	domain = call_domain(call, "migrated");
	if (domain)
		(dryrun ? job_forecast : job_migrate)(domain, &options, call->reply);
}

static void explain_handover(struct call *call)
{
	_cleanup_domain_ struct domain *domain = call_domain(call, "handed over");

	if (domain)
		reply_json(call->reply, 200, json_pack("{s:o}", "explanation", handover_explain(domain)));
}

static void settle_handover(struct call *call)
{
	_cleanup_domain_ struct domain *domain = NULL;
	const char *settle;
	struct error error;
	bool keep;
	int r;

	if (!CALL_BODY(call, "{s:s}", "settle", &settle))
		return;
	keep = strcmp(settle, "keep") == 0;
	domain = call_domain(call, "handed over");
	if (!domain)
		return;
	if (!keep && strcmp(settle, "forget") != 0)
		r = error_set(
			&error, EINVAL, "A hand-over is settled by keep or forget, found '%.32s'.", settle);
	else
		r = handover_force(domain, keep, &error);
	answer(call, r, &error);
}

static void migrations(struct call *call)
{
	reply_json(call->reply, 200, json_pack("{s:o}", "migrations", moves_describe(call->xend)));
}

/* Ends the save or migration that is under way, if that is still possible; does not wait for it. */
static void cancel(struct call *call)
{
	_cleanup_domain_ struct domain *domain = call_domain(call, "released");
	struct error error;
	int r = 0;

	if (!domain)
		return;
	if (!domain->busy || domain->cancel < 0)
		r = error_set(&error, EBUSY, "Domain '%s' is %s: there is nothing that could be cancelled.",
			domain->config.name, domain->busy ? domain->busy : "not being moved or saved");
	else
		eventfd_write(domain->cancel, 1);
	answer(call, r, &error);
}

/* Of a name, whatever bears it by now. */
static void show_ending(struct call *call)
{
	struct error error;
	json_t *ending = endings_describe(call->xend, call->domain, &error);

	if (ending)
		reply_json(call->reply, 200, ending);
	else
		reply_error(call->reply, &error);
}

static void gone(struct call *call)
{
	_cleanup_domain_ struct domain *domain = call_domain(call, "waited for");
	struct error error;

	if (!domain)
		return;
	if (watch_begin(call->xend, &error) < 0)
		reply_error(call->reply, &error);
	else
		watch_for_end(domain, call->reply);
}

struct route api_routes[] = {
	{"GET", "/domains", list, .brief = true},
	{"POST", "/domains", create},
	{"GET", "/domains/*", show},
	{"POST", "/domains/*/pause", pause_domain},
	{"POST", "/domains/*/unpause", unpause_domain},
	{"POST", "/domains/*/shutdown", shutdown_domain},
	{"POST", "/domains/*/reboot", reboot_domain},
	{"POST", "/domains/*/destroy", destroy},
	{"POST", "/domains/*/rename", rename_domain},
	{"POST", "/domains/*/save", save},
	{"POST", "/domains/*/migrate", migrate},
	{"GET", "/domains/*/handover", explain_handover},
	{"POST", "/domains/*/handover", settle_handover},
	{"GET", "/migrations", migrations, .brief = true},
	{"POST", "/domains/*/cancel", cancel, .brief = true},
	{"GET", "/domains/*/console", console_stream},
	{"POST", "/domains/*/console", console_input},
	{"GET", "/domains/*/gone", gone},
	{"GET", "/domains/*/ending", show_ending},
	{"POST", "/restore", restore},
	{"GET", "/info", info_show, .brief = true},
	{"GET", "/log", log_show},
	{"GET", "/trust", trust_show, .brief = true},
	{"POST", "/trust", trust_add},
	{"POST", "/trust/identify", trust_identify},
	{"POST", "/trust/forget", trust_forget},
	{NULL},
};
