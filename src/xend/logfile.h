/*
 * The log file: xend's standard error, to which only xend writes (process_log.h). It is kept below a size.
 *
 * Guests of an older xend write to the file that they were started with, for as long as they live. So a log
 * that has become too large is copied to logfile.1 (that to .2, and so on) and made empty where it is:
 * everybody writes at its end.
 */
#pragma once

#include "config/xend_config.h"

/* Makes the log file standard output and error. */
int logfile_open(const struct xend_config *config, struct error *error);

/*
 * From now on, by a thread of its own, looks at the log's size and writes what the log has counted (log.h).
 * `config` lives as long as xend. Without a thread the log grows, and says so.
 */
void logfile_keep(const struct xend_config *config);
