/*
 * ferry-carrier: carries one guest's memory and state, for as long as one save,
 * restore or migration lasts. xend starts it; docs/internal/carrier-jobs.md.
 */
#include "base/cleanup.h"
#include "base/log.h"
#include "base/turns.h"
#include "carry/jobs.h"
#include "carry/sandbox.h"

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <time.h>

static const struct {
	const char *name;
	int (*run)(struct job *job, confine_function *confine, struct error *error);
} jobs[] = {
	{"save", save_job},
	{"restore", restore_job},
	{"fill", fill_job},
	{"send", send_job},
	{"receive", receive_job},
	{"ask", ask_job},
	{"query", query_job},
	{"measure", measure_job},
	{"identify", identify_job},
};

struct options {
	int channel;
	bool has_user;
	uid_t user;
	gid_t group;
};

static bool parse_number(const char *text, char end, unsigned long *number, const char **rest)
{
	char *stop;

	errno = 0;
	*number = strtoul(text, &stop, 10);
	*rest = stop + 1;
	return stop != text && *stop == end && errno == 0 && *number < UINT32_MAX;
}

static bool parse_options(int count, char **arguments, struct options *options)
{
	static const struct option known[] = {
		{"job", required_argument, NULL, 'j'}, {"user", required_argument, NULL, 'u'}, {0}};
	unsigned long number, group;
	const char *rest;
	int option;

	*options = (struct options){.channel = -1};
	while ((option = getopt_long(count, arguments, "", known, NULL)) != -1) {
		if (option == 'j' && parse_number(optarg, '\0', &number, &rest)) {
			options->channel = (int)number;
		} else if (option == 'u' && parse_number(optarg, ':', &number, &rest) &&
			   parse_number(rest, '\0', &group, &rest)) {
			options->has_user = true;
			options->user = (uid_t)number;
			options->group = (gid_t)group;
		} else {
			return false;
		}
	}
	return options->channel >= 0 && optind == count;
}

static int run_job(const struct options *options, struct job *job, struct error *error)
{
	const char *name = job_verb(&job->request);
	int r = options->has_user ? sandbox_drop_user(options->user, options->group, error) : 0;

	if (r < 0)
		return r;
	for (size_t i = 0; i < ARRAY_SIZE(jobs); i++)
		if (strcmp(jobs[i].name, name) == 0)
			return jobs[i].run(job, sandbox_enter, error);
	return error_set(error, EINVAL, "The carrier does not know the job '%s'.", name);
}

int main(int count, char **arguments)
{
	struct error error = {0};
	struct options options;
	struct job job;

	turns_short();
	log_open("ferry-carrier", LOG_INFO_);
	if (!parse_options(count, arguments, &options)) {
		log_error("Usage: ferry-carrier --job FD [--user UID:GID] (xend starts it).");
		return 2;
	}
	signal(SIGPIPE, SIG_IGN);
	/* What libraries would open later, in the sandbox, they open now. */
	tzset();
	json_object_seed(0);
	if (job_begin(&job, options.channel, &error) < 0) {
		log_error("%s", error.text);
		return 1;
	}
	if (run_job(&options, &job, &error) < 0) {
		/* Of what a stranger is told xend keeps count. */
		if (strcmp(job_verb(&job.request), "receive") != 0)
			log_info("%s", error.text);
		job_failed(&job, &error);
	}
	job_end(&job);
	return 0;
}
