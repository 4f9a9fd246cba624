"""Read grafana.ini; refuse any section, key or value that Grafana would not understand."""

from __future__ import annotations

import configparser
import os
import re
from pathlib import Path

from . import ConfigurationError

# Sections and keys of Grafana's conf/defaults.ini that a monitoring role may want to set. The mark after a
# name is the kind of its value: ? true or false, # a whole number, ~ a duration; none: text.
KNOWN = {
    "": "app_mode instance_name force_migration?",
    "paths": "data temp_data_lifetime~ logs plugins provisioning permitted_provisioning_paths",
    "server": "protocol min_tls_version http_addr http_port# domain enforce_domain? root_url serve_from_sub_path?"
    " router_logging? static_root_path enable_gzip? cert_file cert_key socket cdn_url read_timeout~",
    "database": "type host name user password url path max_idle_conn# max_open_conn# conn_max_lifetime#"
    " log_queries? ssl_mode cache_mode wal? query_retries# transaction_retries#",
    "dataproxy": "logging? timeout# dialTimeout# keep_alive_seconds# max_idle_connections# idle_conn_timeout_seconds#"
    " send_user_header? response_limit# row_limit#",
    "analytics": "enabled? reporting_enabled? reporting_distributor check_for_updates? check_for_plugin_updates?"
    " feedback_links_enabled?",
    "security": "disable_initial_admin_creation? admin_user admin_password admin_email secret_key disable_gravatar?"
    " data_source_proxy_whitelist disable_brute_force_login_protection? cookie_secure? cookie_samesite"
    " allow_embedding? strict_transport_security? strict_transport_security_max_age_seconds#"
    " strict_transport_security_preload? strict_transport_security_subdomains? x_content_type_options?"
    " x_xss_protection? content_security_policy? content_security_policy_template angular_support_enabled?",
    "snapshots": "enabled? external_enabled? external_snapshot_url external_snapshot_name public_mode?"
    " snapshot_remove_expired?",
    "dashboards": "versions_to_keep# min_refresh_interval~ default_home_dashboard_path",
    "users": "allow_sign_up? allow_org_create? auto_assign_org? auto_assign_org_id# auto_assign_org_role"
    " verify_email_enabled? login_hint password_hint default_theme default_language default_locale home_page"
    " viewers_can_edit? editors_can_admin? user_invite_max_lifetime_duration~ hidden_users",
    "auth": "login_cookie_name login_maximum_inactive_lifetime_duration~ login_maximum_lifetime_duration~"
    " token_rotation_interval_minutes# disable_login_form? disable_login? disable_signout_menu?"
    " signout_redirect_url oauth_auto_login? api_key_max_seconds_to_live# sigv4_auth_enabled?",
    "auth.anonymous": "enabled? org_name org_role hide_version?",
    "auth.basic": "enabled?",
    "log": "mode level filters",
    "log.console": "level format",
    "log.file": "level format log_rotate? max_lines# max_size_shift# daily_rotate? max_days#",
    "alerting": "enabled? execute_alerts?",
    "unified_alerting": "enabled? execute_alerts? evaluation_timeout~ max_attempts# min_interval~ ha_listen_address",
    "annotations": "cleanupjob_batchsize#",
    "explore": "enabled?",
    "help": "enabled?",
    "profile": "enabled?",
    "news": "news_feed_enabled? news_feed_url",
    "query_history": "enabled?",
    "public_dashboards": "enabled?",
    "metrics": "enabled? interval_seconds# disable_total_stats? basic_auth_username basic_auth_password",
    "grafana_com": "url api_url",
    "panels": "enable_alpha? disable_sanitize_html?",
    "plugins": "enable_alpha? app_tls_skip_verify_insecure? allow_loading_unsigned_plugins plugin_admin_enabled?"
    " plugin_admin_external_manage_enabled? plugin_catalog_url plugin_catalog_hidden_plugins"
    " log_backend_requests? public_key_retrieval_disabled? public_key_retrieval_on_startup? disable_plugins"
    " preinstall preinstall_async? preinstall_disabled? preinstall_auto_update?",
    "live": "max_connections# allowed_origins",
    "feature_toggles": "enable",
    "date_formats": "full_date interval_second interval_minute interval_hour interval_day interval_month"
    " interval_year use_browser_locale? default_timezone",
    "support_bundles": "enabled? server_admin_only?",
}
KINDS = {
    "?": (r"true|false|", "true or false"),
    "#": (r"-?\d+|", "a whole number"),
    "~": (r"(\d+(ms|[smhdwMy]))+|\d+|", "a duration such as 1s or 7d"),
    "": (r"(?s).*", "text"),
}
DEFAULTS = {
    "paths.data": "/var/lib/grafana",
    "paths.provisioning": "/etc/grafana/provisioning",
    "server.protocol": "http",
    "server.http_addr": "",
    "server.http_port": "3000",
    "security.admin_user": "admin",
    "security.admin_password": "admin",
    "security.disable_brute_force_login_protection": "false",
    "auth.login_cookie_name": "grafana_session",
    "auth.anonymous.enabled": "false",
    "auth.basic.enabled": "true",
}


def read_text(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{what} {path} cannot be read by uid {os.getuid()}: {error}.") from error


def unquoted(value: str, where: str) -> str:
    """A value without its quotes, variables expanded as Grafana does ($__file{…}, $__env{…}, ${…})."""
    for quote in ('"""', "`", '"'):
        if len(value) >= 2 * len(quote) and value.startswith(quote) and value.endswith(quote):
            value = value[len(quote) : -len(quote)]
            break
    else:
        if "#" in value or ";" in value:
            raise ConfigurationError(f'{where}: Grafana cuts a value at # or ;, so wrap it in triple quotes ("""…""").')
    file = re.fullmatch(r"\$__file\{(.+)\}", value)
    if file:
        return read_text(Path(file.group(1)), f"{where}: the file").strip()
    return re.sub(r"\$(?:__env)?\{(\w+)\}", lambda name: os.environ.get(name.group(1), ""), value)


def read_settings(path: Path, overrides: list[str]) -> dict[str, str]:
    """`section.key` → value, from the defaults, the file, the environment (GF_…) and `cfg:default.…` arguments.

    Raises:
        ConfigurationError: an unreadable file, an unknown section or key, a value of the wrong kind.
    """
    parser = configparser.ConfigParser(interpolation=None, comment_prefixes=("#", ";"), default_section="\0")
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    try:
        parser.read_string("[\1]\n" + read_text(path, "The configuration"), source=str(path))
    except configparser.Error as error:
        raise ConfigurationError(f"{path} is not a valid ini file: {str(error).splitlines()[0]}.") from error

    found = dict(DEFAULTS)
    for header in parser.sections():
        section = "" if header == "\1" else header
        if section not in KNOWN:
            raise ConfigurationError(f"{path}: Grafana has no section [{section}] that this stand-in knows.")
        kinds = {re.sub(r"\W", "", name): re.sub(r"\w", "", name) for name in KNOWN[section].split()}
        for key, raw in parser[header].items():
            where = f"{path}: [{section}] {key}"
            if key not in kinds:
                raise ConfigurationError(f"{where}: Grafana has no such key that this stand-in knows.")
            value = os.environ.get("GF_" + re.sub(r"\W", "_", f"{section}_{key}").upper(), unquoted(raw or "", where))
            pattern, kind = KINDS[kinds[key]]
            if not re.fullmatch(pattern, value):
                raise ConfigurationError(f"{where} = {value!r} is not {kind}.")
            found[f"{section}.{key}"] = value
    for override in overrides:
        match = re.fullmatch(r"cfg:(?:default\.)?([\w.]+)=(.*)", override)
        if not match:
            raise ConfigurationError(f"The argument {override!r} is not of the form cfg:default.section.key=value.")
        found[match.group(1)] = match.group(2)
    if found["server.protocol"] != "http":
        raise ConfigurationError(f"{path}: the stand-in speaks plain http only, not {found['server.protocol']!r}.")
    return found
