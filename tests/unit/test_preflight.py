"""Wrong variables stop in preflight, each with a sentence that says what to change."""

import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any, Dict, List, Optional

import pytest
import yaml

from tests.unit.plays import run_play

pytest.importorskip("ansible")

REPOSITORY = Path(__file__).parents[2]
DIGEST = "0" * 64
ROLES = {"model_servers": "model_server", "load_balancers": "haproxy", "load_generators": "locust"}  # group → its role
MONITORING = ("firewall", "node_exporter", "alertmanager", "probe", "prometheus", "grafana")  # roles of one group
FOCAL = {"distribution": "Ubuntu", "distribution_version": "20.04", "service_mgr": "systemd", "processor_vcpus": 2}
LOCAL = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, "ansible_become": False}
# What is on the machine of the tests is not judged: these say that nothing listens, and how much disk is free.
PROGRAMS = {"ss": ":", "df": "echo 99999"}
IMAGE = str(next((REPOSITORY / "load_test" / "images").glob("*.jp*g")))
PROBE = {"probe_state": "present", "probe_image": IMAGE, "probe_class": "apple"}
MAIL = {
    "alertmanager_email_to": "duty@example.org, Second Line <second@example.org>",
    "alertmanager_smtp_smarthost": "mail.example.org:587",
    "alertmanager_smtp_from": "alerts@example.org",
}

# What is judged → host → its variables, and what preflight says. One run judges all hosts of a role at once, and ends
# there for all of them: roles that share hosts are told apart.
WRONG: Dict[str, Dict[str, Any]] = {
    "model_servers": {
        "negative_port": ({"model_server_port": -1}, "model_server_port is -1; set it to a number from 1 to 65535."),
        "high_port": ({"model_server_port": 65536}, "set it to a number from 1 to 65535."),
        "no_port": ({"model_server_port": "http"}, "model_server_port is http; set it to a number from 1 to 65535."),
        "long_drain": ({"model_server_drain_seconds": 3600}, "set it to seconds from 0 to 600."),
        "no_worker": ({"model_server_workers": 0}, "set it to a number from 1 to 256."),
        "name_as_address": ({"model_server_listen_address": "eth0"}, "set it to an IPv4 address, or"),
        "unknown_torch": ({"model_server_torch_source": "conda"}, "is 'conda'; set it to pip or distro."),
        "hash_with_its_name": (
            {"model_server_torch_hashes": [DIGEST, f"sha256:{DIGEST}"]},
            "each has the 64 hexadecimal digits that pip hash prints.",
        ),
        "no_network": (
            {"model_server_internal_pages_from": ["10.0.0.0/8", "a b"]},
            "list a b; write each as a network",
        ),
        "url_without_checksum": (
            {"model_server_weights_url": "https://example.org/w.pt"},
            "set model_server_weights_sha256 to",
        ),
        "checksum_without_url": ({"model_server_weights_sha256": DIGEST}, "set model_server_weights_url as well"),
        "torchvision_for_no_release": (
            {"model_server_torchvision": True, "model_server_torch_version": "2.13"},
            "which torchvision fits is known of 2.x.y alone;",
        ),
        "key_without_name": (
            {"model_server_api_keys": [{"secret": "x" * 32}]},
            "a key whose name is not 1 to 64 letters",
        ),
        "short_key": (
            {"model_server_api_keys": [{"name": "shop", "secret": "example.org"}]},
            "model_server_api_keys has a key without a usable secret;",
        ),
        "key_without_secret": ({"model_server_api_keys": [{"name": "shop"}]}, "a key without a usable secret;"),
        "short_feedback_key": ({"model_server_feedback_keys": ["short"]}, "has a key of less than 32 characters"),
        "few_bytes_of_samples": (
            {"model_server_samples_max_bytes": 1000},
            "is 1000; set it to 1000000 bytes or more, or to 0 to keep no images.",
        ),
        "samples_in_words": ({"model_server_samples_max_bytes": "100M"}, "set it to 1000000 bytes or more, or to 0"),
        "percent_of_confidence": (
            {"model_server_samples_below_confidence": 50},
            "model_server_samples_below_confidence is 50; set it to a number from 0 to 1.",
        ),
        "unknown_engine": ({"model_server_engine": "tensorrt"}, "is 'tensorrt'; set it to torch, onnxruntime or ncnn,"),
        "unknown_decoding": ({"model_server_decoding": "slow"}, "is 'slow'; set it to exact or fast."),
        "missing_bundle": (
            {"model_server_bundle": "/no/such/bundle"},
            "is '/no/such/bundle', where this controller finds nothing; set it to a directory or an archive on it",
        ),
        "directory_without_manifest": (
            {"model_server_bundle": str(REPOSITORY / "script")},
            "finds no model.yaml that gives a name and a version;",
        ),
        "file_without_manifest": (
            {"model_server_bundle": str(REPOSITORY / "site.yml")},
            "finds no model.yaml that gives a name and a version;",
        ),
        "name_with_a_path": ({"model_server_bundle": "{{ bundles }}/path"}, "that gives a name and a version;"),
        "broken_manifest": ({"model_server_bundle": "{{ bundles }}/broken"}, "that gives a name and a version;"),
        "list_as_manifest": ({"model_server_bundle": "{{ bundles }}/list"}, "that gives a name and a version;"),
        "number_as_version": (
            {"model_server_bundle": "{{ bundles }}/number"},
            "whose model.yaml has 1.1 as name or version, not as text; put it in quotes.",
        ),
        "bundle_and_weights": (
            {
                "model_server_bundle": "{{ bundles }}/right",
                "model_server_weights_url": "https://example.org/w.pt",
                "model_server_weights_sha256": DIGEST,
            },
            "model_server_bundle and model_server_weights_url are both set, and one model is served;",
        ),
        "bundle_url_without_checksum": (
            {"model_server_bundle": "https://example.org/b.tar.gz"},
            "set model_server_bundle_sha256 to",
        ),
        "missing_archive": (
            {"model_server_bundle": "file:///no/such/b.tar.gz", "model_server_bundle_sha256": DIGEST},
            "model_server_bundle could not be fetched by this controller: ",
        ),
        "another_archive": (
            {"model_server_bundle": "{{ bundles }}/right.tar.gz", "model_server_bundle_sha256": DIGEST},
            "but model_server_bundle_sha256 is another; set it to that of the archive that is meant.",
        ),
        "checksum_of_a_directory": (
            {"model_server_bundle": "{{ bundles }}/right", "model_server_bundle_sha256": DIGEST},
            "model_server_bundle is no archive; leave the checksum empty",
        ),
        "short_checksum": (
            {"model_server_weights_url": "https://example.org/w.pt", "model_server_weights_sha256": "abc"},
            "set it to the 64 hexadecimal digits",
        ),
        "path_as_url": (
            {"model_server_weights_url": "/srv/w.pt", "model_server_weights_sha256": DIGEST},
            "set it to an http, https or file URL.",
        ),
        "old_system": (
            {"os": {"distribution_version": "18.04"}},
            "Ubuntu 18.04 is not supported; deploy to Ubuntu 20.04 or later",
        ),
        "other_system": (
            {"os": {"distribution": "Fedora", "distribution_version": "40"}},
            "Fedora 40 is not supported; deploy to Ubuntu 20.04 or later, or Debian 11 or later.",
        ),
        "no_systemd": ({"os": {"service_mgr": "openrc"}}, "the model server needs systemd."),
        "distro_torch_on_focal": ({"model_server_torch_source": "distro"}, "set model_server_torch_source to pip."),
        "onnxruntime_beside_distro_torch": (
            {
                "model_server_bundle": "{{ bundles }}/exported",
                "model_server_torch_source": "distro",
                "model_server_python": "/usr/bin/python3",
                "os": {"distribution": "Debian", "distribution_version": "12"},
            },
            "whose engine is onnxruntime, and its numpy does not work with the distribution's torch;",
        ),
        "distro_torch_elsewhere": (
            {"model_server_torch_source": "distro", "model_server_python": sys.executable},
            "set model_server_python to /usr/bin/python3",
        ),
        "missing_python": ({"model_server_python": "/usr/bin/python0"}, "full path of a Python 3.8 or later"),
        "unknown_state": ({"model_server_state": "gone"}, "set it to present or absent."),
        "missing_images": (
            {"model_server_reference_images": "/no/such/directory"},
            "is /no/such/directory, where this controller finds 0 images; set it to a directory with 10 or more.",
        ),
        "directory_without_images": (
            {"model_server_reference_images": str(REPOSITORY / "script")},
            "finds 0 images; set it to a directory",
        ),
    },
    "node_exporter": {
        "old_system": ({"os": {"distribution_version": "18.04"}}, "Ubuntu 18.04 is not supported"),
        "negative_port": ({"node_exporter_port": -1}, "node_exporter_port is '-1'; set it to a port from 1 to 65535."),
        "two_flags_in_one": ({"node_exporter_extra_args": ["--a --b"]}, "without spaces or quotes."),
        "name_as_address": ({"node_exporter_listen_address": "eth0"}, "set it to an IPv4 address, or"),
        "foreign_exporter": (
            {"node_exporter_port": 9191},
            "Port 9191 is taken by docker-proxy (process 77); stop it or set node_exporter_port to another port.",
        ),
    },
    "alertmanager": {
        "no_port": ({"alertmanager_port": 0}, "alertmanager_port is '0'; set it to a port from 1 to 65535."),
        "no_webhook": (
            {"alertmanager_webhook_url": "example.org"},
            "set it to one that begins with http:// or https://",
        ),
        "no_heartbeat": (
            {"alertmanager_heartbeat_url": "example.org"},
            "alertmanager_heartbeat_url is not a URL; set it to one that begins with",
        ),
        "two_units_of_heartbeat": (
            {"alertmanager_heartbeat_interval": "1m30s"},
            "alertmanager_heartbeat_interval is '1m30s'; set it to one number",
        ),
        "slack_without_channel": (
            {"alertmanager_slack_url": "https://example.org/s"},
            "set alertmanager_slack_channel",
        ),
        "channel_without_slack": ({"alertmanager_slack_channel": "#alerts"}, "set alertmanager_slack_url to"),
        "mail_to_no_address": ({**MAIL, "alertmanager_email_to": "duty"}, "is 'duty'; set it to addresses such as"),
        "mail_without_server": ({**MAIL, "alertmanager_smtp_smarthost": ""}, "set alertmanager_smtp_smarthost"),
        "mail_without_port": ({**MAIL, "alertmanager_smtp_smarthost": "mail"}, "is 'mail'; set it to host:port"),
        "mail_without_sender": ({**MAIL, "alertmanager_smtp_from": ""}, "set alertmanager_smtp_from to an address"),
        "mail_without_password": ({**MAIL, "alertmanager_smtp_username": "duty"}, "set both or neither."),
        "two_units": ({"alertmanager_group_wait": "1m30s"}, "set it to one number and one unit, such as 10s."),
        "one_peer": ({"alertmanager_cluster_peers": "a:9094"}, "alertmanager_cluster_peers is not a list; set it to"),
        "peer_without_port": (
            {"alertmanager_cluster_peers": ["a", "b:9094"]},
            "alertmanager_cluster_peers lists a; write each as host:port",
        ),
        "port_twice": (
            {"alertmanager_cluster_port": 9093},
            "is '9093'; set it to a port from 1 to 65535 other than alertmanager_port.",
        ),
        "name_of_the_cluster": (
            {"alertmanager_cluster_listen_address": "eth0"},
            "alertmanager_cluster_listen_address is 'eth0'; set it to an IPv4 address, or",
        ),
        "name_to_advertise": (
            {"alertmanager_cluster_advertise_address": "server"},
            "alertmanager_cluster_advertise_address is 'server'; set it to an IPv4 address, or",
        ),
        "foreign_cluster": (
            {"alertmanager_cluster_port": 9191, "alertmanager_cluster_peers": ["a:9094"]},
            "taken by docker-proxy (process 77); stop it or set alertmanager_cluster_port to another port.",
        ),
        "foreign_alertmanager": (
            {"alertmanager_port": 9191},
            "Port 9191 is taken by docker-proxy (process 77); stop it or set alertmanager_port to another port.",
        ),
    },
    "prometheus": {
        "no_port": ({"prometheus_port": 0}, "prometheus_port is '0'; set it to a port from 1 to 65535."),
        "two_units": ({"prometheus_scrape_interval": "1m30s"}, "set it to one number and one unit, such as 1s."),
        "slow_scrape": (
            {"prometheus_scrape_interval": "1m"},
            "is 1m, too long for rules that look back over a minute;",
        ),
        "no_unit": ({"prometheus_retention_time": 15}, "prometheus_retention_time is '15'; set it to one number and"),
        "list_of_targets": ({"prometheus_targets": ["a:1"]}, "prometheus_targets is not a mapping; set it to one from"),
        "own_job": ({"prometheus_targets": {"prometheus": []}}, "has the job prometheus, which cannot be used;"),
        "one_target": ({"prometheus_targets": {"node": "a:1"}}, "has the job node, which cannot be used;"),
        "high_port": ({"prometheus_targets": {"node": ["a:1", "b:65536"]}}, "prometheus_targets lists b:65536; write"),
        "url_as_target": ({"prometheus_targets": {"node": ["http://a:1"]}}, "lists http://a:1; write each target as"),
        "unknown_alert": (
            {"prometheus_alert_for": {"TargetGone": "10s", "TargetDown": "10s"}},
            "prometheus_alert_for names TargetGone, and there is no such alert; the alerts are Accuracy",
        ),
        "no_duration": (
            {"prometheus_alert_for": {"NoTraffic": 10, "TargetDown": "10s"}},
            "prometheus_alert_for has no duration for NoTraffic; set each to one number and one unit",
        ),
        "list_of_durations": ({"prometheus_alert_for": ["10s"]}, "prometheus_alert_for is not a mapping; set it to"),
        "milliseconds": (
            {"prometheus_objective_p50_seconds": 50, "prometheus_objective_p99_seconds": 300},
            "set them to seconds above 0, the first not above the second, and that not above 10.",
        ),
        "percent": ({"prometheus_objective_success_ratio": 99}, "set them to a share between 0 and 1, such as 0.999"),
        "anchor": ({"prometheus_runbooks_url": "https://a/b#c"}, "set it to a URL or a path, without an anchor."),
        "url_without_slash": (
            {"prometheus_external_url": "https://a/b"},
            "set it to a URL with a slash at its end, such",
        ),
        "url_of_alertmanager": (
            {"prometheus_alertmanagers": ["a:9093", "http://b:9093"]},
            "prometheus_alertmanagers lists http://b:9093; write each as host:port",
        ),
        "one_alertmanager": ({"prometheus_alertmanagers": "a:9093"}, "prometheus_alertmanagers is not a list; set it"),
        "computed_target": (
            {"prometheus_inventory_targets": {"node": ["a:9100", "fd00::1:9100"]}},
            "The inventory gives fd00::1:9100 as an address to scrape or to send alerts to; correct host_address or",
        ),
        "computed_alertmanager": ({"prometheus_inventory_alertmanagers": ["a:0"]}, "The inventory gives a:0 as an"),
        "computed_peer": ({"prometheus_peers": ["a"]}, "The inventory gives a as an address to scrape or to send"),
        "one_peer": ({"prometheus_peers": "a:9090"}, "prometheus_peers is not a list; set it to one of host:port."),
        "shard_too_many": (
            {"prometheus_shards": 2, "prometheus_shard": 2},
            "is '2' and prometheus_shard '2'; set the first to a number of 1 or more, and the second to one from 0",
        ),
        "no_shard": ({"prometheus_shards": 0}, "prometheus_shards is '0' and prometheus_shard '0'; set the first to a"),
        "missing_shard": (
            {"prometheus_shards": 4, "prometheus_inventory_shards": [0, 2]},
            "No Prometheus of the inventory is shard 1, 3 of 4, whose targets nobody would scrape; set",
        ),
        "number_as_size": (
            {"prometheus_retention_size": 50},
            "prometheus_retention_size is '50'; set it to one number",
        ),
        "fraction_of_size": ({"prometheus_retention_size": "1.5GB"}, "set it to one number and KB, MB, GB, TB or PB"),
        "list_of_labels": ({"prometheus_external_labels": ["north"]}, "prometheus_external_labels is not a mapping"),
        "label_with_dash": ({"prometheus_external_labels": {"my-site": "a"}}, "with names of letters, digits and _"),
        "address_to_write_to": ({"prometheus_remote_write": ["https://a"]}, "prometheus_remote_write is not a list of"),
        "write_to_no_url": ({"prometheus_remote_write": [{"url": "a:9"}]}, "with a url each that begins with http://"),
        "scrape_without_name": (
            {"prometheus_extra_scrape_configs": [{"metrics_path": "/"}]},
            "prometheus_extra_scrape_configs is not a list of mappings with a job_name each;",
        ),
        "scrape_of_known_job": (
            {"prometheus_extra_scrape_configs": [{"job_name": "db"}], "prometheus_targets": {"db": ["a:1"]}},
            "has a job that is there already; give each job_name once, and none of prometheus, db",
        ),
        "scrape_twice": (
            {"prometheus_extra_scrape_configs": [{"job_name": "x"}, {"job_name": "x"}]},
            "has a job that is there already;",
        ),
        "foreign_prometheus": (
            {"prometheus_port": 9191, "prometheus_take_over": True},
            "Port 9191 is taken by docker-proxy (process 77); stop it or set prometheus_port to another port.",
        ),
    },
    "grafana": {
        "package_without_checksum": ({"grafana_deb": "https://example.org/grafana.deb"}, "set grafana_deb_sha256 to"),
        "missing_package": (
            {"grafana_deb": "/srv/missing.deb", "grafana_deb_sha256": DIGEST},
            "grafana_deb is '/srv/missing.deb'; set it to the URL of a .deb, or to the path of one that exists",
        ),
        "number_as_version": ({"grafana_version": 12}, "grafana_version is '12'; set it to a release line such as"),
        "weak_password": (
            {"grafana_admin_password": "admin"},
            "grafana_admin_password is too weak; set it to at least",
        ),
        "no_scheme": ({"grafana_prometheus_url": "127.0.0.1:9090"}, "set it to a URL such as http://127.0.0.1:9090."),
        "two_units": ({"grafana_scrape_interval": "1m30s"}, "grafana_scrape_interval is '1m30s'; set it to one number"),
        "no_scheme_of_alertmanager": (
            {"grafana_alertmanager_url": "a:9093"},
            "set it to a URL such as http://127.0.0.1:9093",
        ),
        "setting_without_section": (
            {"grafana_ini": {"enabled": True}},
            "grafana_ini is not a mapping from sections to",
        ),
        "no_answer": ({"grafana_upgrade": "12"}, "grafana_upgrade is '12'; set it to true or false."),
        "root_without_slash": (
            {"grafana_root_url": "https://models.example.org/grafana"},
            "set it to a URL with a slash at its end, such as https://models.example.org/grafana/.",
        ),
        "missing_dashboard": (
            {"grafana_dashboards": ["/srv/missing.json"]},
            "grafana_dashboards: /srv/missing.json cannot be read on the controller: No such file or directory; give",
        ),
        "folder_with_slash": ({"grafana_folder": "a/b"}, "grafana_folder is 'a/b'; set it to a name without a slash"),
        "unknown_dashboard": (
            {"grafana_home_dashboard": "x.json"},
            "grafana_home_dashboard is 'x.json'; set it to one",
        ),
        "foreign_grafana": (
            {"grafana_port": 9191},
            "Port 9191 is taken by docker-proxy (process 77); stop it or set grafana_port to another port.",
        ),
    },
    "probe": {
        "no_image": ({"probe_state": "present"}, "probe_image is ''; set it to an image on the controller whose class"),
        "no_class": (
            {"probe_state": "present", "probe_image": IMAGE},
            "probe_class is empty; set it to the class that",
        ),
        "no_url": (
            {**PROBE, "probe_targets": ["models.example.org"]},
            "probe_targets lists models.example.org; write each as a URL, such as https://models.example.org.",
        ),
        "nobody_to_ask": ({**PROBE, "probe_inventory_targets": []}, "has neither a front door nor a model server; set"),
        "impatient": (
            {**PROBE, "probe_timeout": 20},
            "probe_interval is '10' and probe_timeout '20'; set them to seconds from 1 to 3600, the second not above",
        ),
        "secret_alone": ({**PROBE, "probe_api_key": "s3cret"}, "probe_api_key is not a name, a dot and a secret; set"),
    },
    "firewall": {
        "unknown_state": ({"firewall_state": "off"}, "firewall_state is 'off'; set it to present or absent."),
        "no_list": (
            {"firewall_predict_from": "any"},
            "firewall_predict_from is not a list; set it to one, such as [any]",
        ),
        "no_port": ({"firewall_open_ports": [443, "https"]}, "firewall_open_ports lists https; write each as a port,"),
    },
    "load_balancers": {
        "unknown_state": ({"haproxy_state": "on"}, "haproxy_state is 'on'; set it to present or absent."),
        "no_server": ({"haproxy_model_servers": []}, "haproxy_model_servers and haproxy_grafana are both empty; set"),
        "one_server": ({"haproxy_model_servers": "a:8000"}, "haproxy_model_servers is not a list; set it to one."),
        "url_as_server": (
            {"haproxy_model_servers": ["http://a:8000"]},
            "lists http://a:8000; write each as host:port.",
        ),
        "no_port": ({"haproxy_grafana": "server"}, "haproxy_grafana is 'server'; set it to host:port, or leave it"),
        "same_port_twice": ({"haproxy_http_port": 443}, "are 443, 443, 8404; set them to three ports from 1 to 65535."),
        "high_port": ({"haproxy_https_port": 65536}, "are 80, 65536, 8404; set them to three ports from 1 to 65535."),
        "name_as_address": ({"haproxy_listen_address": "eth0"}, "set each to an IPv4 address, or an IPv6 address in"),
        "certificate_without_key": (
            {"haproxy_certificates": [__file__]},
            "which lacks a certificate or its",
        ),
        "missing_certificate": ({"haproxy_certificates": ["/no/such.pem"]}, "lists /no/such.pem, which is no file on"),
        "no_network": (
            {"haproxy_unlimited_clients": ["10.0.0.0/8", "a b"]},
            "haproxy_unlimited_clients lists a b; write",
        ),
        "weak_password": (
            {"haproxy_operators": [{"name": "duty", "password": "secret"}]},
            "haproxy_operators has an entry without a usable name or password;",
        ),
        "no_name": ({"haproxy_operators": [{"password": "123456789abc"}]}, "has an entry without a usable name or"),
        "url_of_prometheus": ({"haproxy_prometheus": "http://a:1"}, "haproxy_prometheus is 'http://a:1' and"),
        "no_connection": ({"haproxy_client_connections": 0}, "haproxy_client_connections is 0 and"),
    },
    "load_generators": {
        "no_target": ({"locust_host": ""}, "set it to the URL of the model server"),
        "no_users": ({"locust_users": 0}, "locust_users is 0; set it to 1 or more."),
        "standing_still": ({"locust_spawn_rate": 0}, "set it to more than 0 users a second."),
        "no_length": ({"locust_run_time": "forever"}, "set it to a length like 60s, 5m or 1h30m."),
        "old_system": ({"os": {"distribution_version": "18.04"}}, "Ubuntu 18.04 is not supported"),
        "no_web_port": (
            {"locust_web_port": 65536},
            "locust_web_port is '65536'; set it to a port up to 65535, such as",
        ),
        "no_path": (
            {"locust_metrics_directory": "metrics"},
            "locust_metrics_directory is 'metrics'; set it to the full path of the directory",
        ),
        "nobody_known": (
            {"locust_metrics_user": "no-such-user"},
            "locust_metrics_user is 'no-such-user', whom nobody_known does not know; set it to the user who",
        ),
    },
}
RIGHT: Dict[str, Dict[str, Any]] = {
    "model_servers": {
        "as_it_is": {},
        "own_weights": {"model_server_weights_url": "https://example.org/w.pt", "model_server_weights_sha256": DIGEST},
        "address": {"model_server_listen_address": "[::]", "model_server_port": "65535"},
        "bundle": {"model_server_bundle": "{{ bundles }}/right"},
        "archive": {"model_server_bundle": "{{ bundles }}/right.tar.gz", "model_server_decoding": "fast"},
        "engine": {"model_server_bundle": "{{ bundles }}/exported", "model_server_engine": "torch"},
        "torchvision": {"model_server_torchvision": True, "model_server_torch_version": "2.4.1"},
        "bundle_of_what_goes": {"model_server_state": "absent", "model_server_bundle": "/no/such/bundle"},
        "own_images": {"model_server_reference_images": str(REPOSITORY / "load_test" / "images")},
    },
    "node_exporter": {
        "as_it_is": {},
        "address": {"node_exporter_listen_address": "10.0.0.1"},
        "flag": {"node_exporter_extra_args": ["--collector.ntp"]},
    },
    "alertmanager": {
        "as_it_is": {},
        "mail": {**MAIL, "alertmanager_smtp_username": "duty", "alertmanager_smtp_password": "secret"},
        "slack": {"alertmanager_slack_url": "https://example.org/s", "alertmanager_slack_channel": "#alerts"},
        "webhook": {
            "alertmanager_webhook_url": "http://load:9099/",
            "alertmanager_heartbeat_url": "https://beats.example.org/1",
        },
        "cluster": {
            "alertmanager_cluster_peers": ["a:9094", "[2001:db8::1]:9194"],
            "alertmanager_cluster_listen_address": "[::]",
            "alertmanager_cluster_advertise_address": "[2001:db8::2]",
        },
        "foreign_port_of_no_cluster": {"alertmanager_cluster_port": 9191, "alertmanager_cluster_peers": []},
    },
    "prometheus": {
        "as_it_is": {},
        "address": {"prometheus_listen_address": "[::1]"},
        "targets": {"prometheus_targets": {"node": ["a:9100", "[::1]:65535"], "model_server": []}},
        "alerts": {
            "prometheus_alert_for": {"TargetDown": "10s", "NoTraffic": "0s"},
            "prometheus_runbooks_url": "https://example.org/runbooks",
            "prometheus_alertmanagers": ["a:9093", "[::1]:9093"],
            "prometheus_external_url": "https://models.example.org/prometheus/",
        },
        "more": {
            "prometheus_retention_size": "50GB",
            "prometheus_external_labels": {"site": "north", "rack": 7},
            "prometheus_shards": 3,
            "prometheus_shard": "2",
            "prometheus_remote_write": [{"url": "https://example.org/write", "basic_auth": {"username": "a"}}],
            "prometheus_extra_scrape_configs": [{"job_name": "blackbox", "metrics_path": "/probe"}],
        },
    },
    "grafana": {
        "as_it_is": {},
        "line": {"grafana_version": "12.*", "grafana_admin_password": "123456789abc"},
        "mail": {
            "grafana_ini": {"smtp": {"enabled": True}},
            "grafana_scrape_interval": "500ms",
            "grafana_upgrade": True,
        },
        "behind_a_proxy": {"grafana_root_url": "https://models.example.org/grafana/"},
        "package": {"grafana_deb": "https://example.org/grafana.deb", "grafana_deb_sha256": DIGEST},
    },
    "firewall": {"without": {"firewall_state": "absent"}},
    "probe": {
        "as_it_is": {},
        "everything": {
            **PROBE,
            "probe_targets": ["http://[::1]:8000/", "https://a/b"],
            "probe_api_key": "monitor.s3cret",
        },
    },
    "load_balancers": {
        "as_it_is": {},
        "no_door": {"haproxy_state": "absent", "haproxy_model_servers": []},
        "grafana_alone": {"haproxy_model_servers": [], "haproxy_grafana": "a:3000"},
        "operators": {
            "haproxy_operators": [{"name": "duty", "password": "123456789abc"}],
            "haproxy_prometheus": "a:9090",
        },
        "fleet": {
            "haproxy_model_servers": ["a:8000", "[::1]:8000"],
            "haproxy_unlimited_clients": ["10.0.0.0/8", "app"],
        },
    },
    "load_generators": {
        "as_it_is": {},
        "long_run": {"locust_run_time": "1h30m"},
        "page": {"locust_web_port": 8089},
        "no_figures": {"locust_metrics_directory": "", "locust_metrics_user": "root"},
    },
}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Dict[str, Dict[str, str]]:
    """Run preflight over a local host for each set of variables; what is judged → host → what stopped it."""
    return {group: preflight(tmp_path_factory.mktemp(group), group) for group in WRONG}


def write_bundles(directory: Path) -> None:
    """Write `right`, which has a name and a version, the same as an archive, and wrong ones."""
    manifests = {
        "right": "version: '1.0'\nname: >\n  right\n",
        "exported": "version: '1.0'\nname: right\nengine: onnxruntime\n",
        "path": "name: ../path\nversion: '1'\n",
        "broken": "name: broken\nversion: '1\n",
        "list": "- name: list\n- version: '1'\n",
        "number": "name: number\nversion: 1.10\n",
    }
    for name, manifest in manifests.items():
        (directory / name).mkdir(parents=True)
        (directory / name / "model.yaml").write_text(manifest)
    with tarfile.open(directory / "right.tar.gz", "w:gz") as archive:
        archive.add(directory / "right" / "model.yaml", "model.yaml")


# What listens on the host: a process of a container on port 9191, nothing else.
SS = """\
case "$*" in *"sport = :9191") echo 'LISTEN 0 4096 *:9191 *:* users:(("docker-proxy",pid=77,fd=4))' ;; esac
"""


def preflight(directory: Path, group: str) -> Dict[str, str]:
    write_bundles(directory / "bundles")
    hosts = {**{name: variables for name, (variables, _) in WRONG[group].items()}, **RIGHT[group]}
    inventory = {
        "all": {"vars": LOCAL},
        "monitoring" if group in MONITORING else group: {
            "hosts": {
                name: {**variables, "os": {**FOCAL, **variables.get("os", {})}} for name, variables in hosts.items()
            },
            "vars": {
                "locust_host": "http://server:8000",
                "haproxy_state": "present" if group == "load_balancers" else "absent",
                "haproxy_model_servers": ["server:8000"],
                "bundles": str(directory / "bundles"),
                "host_address": "192.0.2.1",
                # Those of the inventory are each host's own once more, and have a test of their own.
                "prometheus_inventory_targets": {"model_server": ["server:8000"], "node": ["server:9100"]},
                "prometheus_inventory_alertmanagers": ["127.0.0.1:9093"],
                **{
                    name: []
                    for name in ("prometheus_peers", "prometheus_inventory_shards", "alertmanager_cluster_peers")
                },
                "prometheus_shard": 0,
                # What listens on the machine of the tests is not judged, and neither are its files.
                "firewall_state": "present" if group == "firewall" else "absent",
                **{f"{role}_take_over": True for role in ("node_exporter", "alertmanager", "prometheus", "grafana")},
            },
        },
    }
    facts = {name: f"{{{{ os.{name} }}}}" for name in FOCAL}
    plays: List[Dict[str, Any]] = [
        {"hosts": "all", "gather_facts": False, "tasks": [{"ansible.builtin.set_fact": {**facts, "cacheable": True}}]},
        {"ansible.builtin.import_playbook": str(playbook_of(ROLES.get(group, group), directory))},
    ]
    return stopped(directory, inventory, plays, programs={"ss": SS})


def playbook_of(role: str, directory: Path) -> Path:
    """Write preflight.yml with what judges a role alone; the rest has tests of its own. Return its path."""
    (directory / "playbooks").mkdir()
    for beside in ("playbooks/group_vars", "load_test"):
        (directory / beside).symlink_to(REPOSITORY / beside)
    plays = yaml.safe_load((REPOSITORY / "playbooks" / "preflight.yml").read_text())
    judge = "ansible.builtin.import_role"
    for play in plays:
        play["tasks"] = [task for task in play["tasks"] if task.get(judge, {"name": role})["name"] == role]
    path = directory / "playbooks" / "preflight.yml"
    path.write_text(json.dumps([play for play in plays if any(judge in task for task in play["tasks"])]))
    return path


def stopped(
    directory: Path,
    inventory: Dict[str, Any],
    plays: List[Dict[str, Any]],
    *options: str,
    programs: Optional[Dict[str, str]] = None,
) -> Dict[str, str]:
    """Run plays; host → the sentence that stopped it."""
    run = run_ansible(directory, inventory, plays, *options, programs=programs)
    (hosts,) = (group["hosts"] for group in inventory.values() if "hosts" in group)
    judged = re.findall(r"^(?:fatal|ok): \[(\w+)\]", run.stdout, flags=re.MULTILINE)
    assert set(judged) == set(hosts), run.stdout
    results = re.finditer(r"^fatal: \[(\w+)\]: FAILED! => ", run.stdout, flags=re.MULTILINE)
    return {found[1]: json.JSONDecoder().raw_decode(run.stdout[found.end() :])[0]["msg"] for found in results}


def run_ansible(
    directory: Path,
    inventory: Dict[str, Any],
    plays: List[Dict[str, Any]],
    *options: str,
    programs: Optional[Dict[str, str]] = None,
) -> "subprocess.CompletedProcess[str]":
    (directory / "inventory").mkdir()
    (directory / "inventory" / "hosts.json").write_text(json.dumps(inventory))
    (directory / "play.yml").write_text(json.dumps(plays))
    return run_play(
        directory,
        *("-i", "inventory/hosts.json", "play.yml", "--forks", "8", *options),
        programs={**PROGRAMS, **(programs or {})},
        GATHERING="explicit",
        CONFIG=str(REPOSITORY / "ansible.cfg"),
    )


@pytest.mark.parametrize(("group", "host"), [(group, host) for group in WRONG for host in WRONG[group]])
def test_wrong_variable_is_explained_in_a_sentence(said: Dict[str, Dict[str, str]], group: str, host: str) -> None:
    _, sentence = WRONG[group][host]

    assert sentence in said[group][host]


def test_no_sentence_repeats_a_secret(said: Dict[str, Dict[str, str]]) -> None:
    assert "example.org" not in said["model_servers"]["short_key"]
    assert "secret" not in said["load_balancers"]["weak_password"]
    assert "example.org" not in said["alertmanager"]["no_webhook"] + said["alertmanager"]["slack_without_channel"]


def test_right_variables_pass(said: Dict[str, Dict[str, str]]) -> None:
    assert {group: set(stopped) for group, stopped in said.items()} == {
        group: set(hosts) for group, hosts in WRONG.items()
    }


def test_an_address_that_others_cannot_use_is_explained(tmp_path: Path) -> None:
    addresses = {
        "loopback": {"ansible_host": "127.0.0.1"},
        "itself": {"ansible_host": "localhost"},
        "sixth": {"ansible_host": "::1"},
        "url": {"host_address": "[2001:db8::1]"},
        "port": {"host_address": "server:8000"},
    }
    said = {}
    for name, variables in addresses.items():
        (tmp_path / name).mkdir()
        inventory = {
            "all": {"vars": LOCAL},
            "model_servers": {"hosts": {name: variables}},
            "load_generators": {"children": {"elsewhere": {"hosts": {"load": {}}}}},
        }
        said[name] = find_each_other(tmp_path / name, inventory)

    for name in ("loopback", "itself", "sixth"):
        address = addresses[name]["ansible_host"]
        assert (
            f"host_address of {name} is '{address}', where load would find nobody but itself; set it to" in said[name]
        )
    for name in ("url", "port"):
        assert f"is '{addresses[name]['host_address']}'; set it to a name or an address, without brackets" in said[name]


def test_a_name_that_another_host_does_not_know_is_explained(tmp_path: Path) -> None:
    hosts: Dict[str, Any] = {"renamed.invalid": {}}
    inventory = {
        "all": {"vars": LOCAL},
        "model_servers": {"hosts": hosts},
        "load_generators": {"hosts": {"load": {}}},
    }

    said = find_each_other(tmp_path, inventory)

    assert "load finds no address of renamed.invalid, by which it would reach another host; set host_address of" in said


def test_monitoring_hosts_alone_have_to_know_a_load_generator_and_only_one_with_a_node_exporter(tmp_path: Path) -> None:
    said = {}
    for name, variables in {
        "unknown": {"host_address": "renamed.invalid"},
        "itself": {"host_address": "127.0.0.1"},
        "unwatched": {"host_address": "renamed.invalid", "node_exporter_state": "absent"},
    }.items():
        (tmp_path / name).mkdir()
        inventory = {
            "all": {"vars": LOCAL},
            "model_servers": {"hosts": {"server": {"host_address": "192.0.2.1"}}},
            "monitoring": {"hosts": {"monitor": {"host_address": "192.0.2.2"}}},
            "load_generators": {"hosts": {"load": variables}},
        }
        said[name] = find_each_other(tmp_path / name, inventory)

    assert "monitor finds no address of renamed.invalid, by which it would reach another host;" in said["unknown"]
    assert "server finds no address" not in said["unknown"]
    assert "host_address of load is '127.0.0.1', where " in said["itself"], said["itself"]
    assert "failed=0" in said["unwatched"], said["unwatched"]


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1"])
def test_addresses_that_others_can_use_pass(tmp_path: Path, address: str) -> None:
    inventory = {
        "all": {"vars": LOCAL},
        "model_servers": {"hosts": {"server": {"host_address": address}}},
        "load_generators": {"hosts": {"load": {"ansible_host": "127.0.0.1"}}},
    }

    assert "failed=0" in find_each_other(tmp_path, inventory)


def test_a_newer_ansible_is_refused_in_a_sentence(tmp_path: Path) -> None:
    inventory = {"all": {"vars": LOCAL}, "model_servers": {"hosts": {"server": {}}}}

    said = find_each_other(tmp_path, inventory, "2.20.1")

    assert "ansible-core on this controller is 2.20.1, and 2.18 and 2.19 are supported; install one of them" in said


def test_an_inventory_needs_nothing_but_its_hosts_and_beats_what_is_wired(tmp_path: Path) -> None:
    """As hosts.yml alone, and with group_vars and host_vars of its own."""
    hosts = {"server": {"ansible_host": "2001:db8::1"}, "load": {"ansible_host": "192.0.2.2"}}
    groups = {"model_servers": "server", "monitoring": "server", "load_balancers": "server", "load_generators": "load"}
    inventory = {
        "all": {"hosts": hosts, "vars": {"model_server_port": 8001}},
        **{group: {"hosts": {host: {}}} for group, host in groups.items()},
    }
    (tmp_path / "hosts.json").write_text(json.dumps(inventory))
    own_group = "locust_host | default(''), grafana_home_dashboard | default('')"
    asked = f"{{{{ [__model_server_at, {own_group}, node_exporter_state] }}}}"

    alone = values(tmp_path, asked)
    (tmp_path / "group_vars").mkdir()
    (tmp_path / "host_vars").mkdir()
    (tmp_path / "group_vars" / "all.yml").write_text("haproxy_state: present\nnode_exporter_state: absent\n")
    (tmp_path / "group_vars" / "monitoring.yml").write_text("grafana_home_dashboard: ''\n")
    (tmp_path / "host_vars" / "server.yml").write_text("model_server_listen_address: 0.0.0.0\n")
    own = values(tmp_path, asked)

    assert alone == {
        "server": ["[2001:db8::1]:8001", "", "model-monitoring.json", "present"],
        "load": ["192.0.2.2:8001", "http://[2001:db8::1]:8001", "", "present"],
    }
    assert own == {
        "server": ["[2001:db8::1]:8001", "", "", "absent"],
        "load": ["192.0.2.2:8001", "https://[2001:db8::1]", "", "absent"],
    }


def test_lists_of_hosts_have_the_order_of_the_inventory(tmp_path: Path) -> None:
    """Another order in each run would be a change in each run."""
    servers = [f"server{number}" for number in range(6)]
    inventory = {
        "all": {"vars": {"haproxy_state": "present"}},
        "model_servers": {"hosts": {name: {} for name in servers}},
        "load_balancers": {"hosts": {"door": {}}},
    }
    (tmp_path / "hosts.json").write_text(json.dumps(inventory))

    said = values(tmp_path, "{{ haproxy_model_servers | default([]) }}")

    assert said["door"] == [f"{name}:8000" for name in servers]


def values(inventory: Path, template: str) -> Dict[str, Any]:
    """Return what a template says on each host, beside the playbooks."""
    run = subprocess.run(
        [
            *(Path(sys.executable).with_name("ansible"), "-i", inventory, "--playbook-dir", REPOSITORY / "playbooks"),
            *("all", "--connection", "local", "-o", "-m", "debug", "-a", f"msg={template}"),
        ],
        cwd=REPOSITORY,
        env={**os.environ, "ANSIBLE_HOME": str(inventory / "home"), "ANSIBLE_NOCOLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    said = re.findall(r"^(\w+) \| SUCCESS => (.*)$", run.stdout, flags=re.MULTILINE)
    assert said, run.stdout
    return {host: json.loads(result)["msg"] for host, result in said}


def find_each_other(directory: Path, inventory: Dict[str, Any], version: Optional[str] = None) -> str:
    """Run the first play of preflight, in which hosts find each other, with the wiring of the playbooks."""
    play = yaml.safe_load((REPOSITORY / "playbooks" / "preflight.yml").read_text())[0]
    (directory / "group_vars").symlink_to(REPOSITORY / "playbooks" / "group_vars")
    extra = {"__ansible": version} if version else {}
    return run_ansible(directory, inventory, [play], "--extra-vars", json.dumps(extra)).stdout


@pytest.mark.parametrize(
    ("role", "owner", "port", "sentence"),
    [
        (
            "model_server",
            "nginx",
            8000,
            "model_server_port is 8000, where nginx listens on server already; stop it, or set",
        ),
        ("model_server", "systemd", 8000, ""),
        ("model_server", "nginx", 80, ""),
        ("haproxy", "nginx", 80, "haproxy_http_port is 80, where nginx listens on server already;"),
        ("haproxy", "haproxy", 80, ""),
        ("probe", "nginx", 9116, "probe_port is 9116, where nginx listens on server already;"),
        ("probe", "python3", 9116, ""),
        ("locust", "nginx", 8089, "locust_web_port is 8089, where nginx listens on server already;"),
        ("locust", "locust", 8089, ""),
        (
            "grafana",
            "node",
            3000,
            "Port 3000 is taken by node (process 7); stop it or set grafana_port to another port.",
        ),
    ],
)
def test_a_port_that_another_process_has_is_explained(
    tmp_path: Path, role: str, owner: str, port: int, sentence: str
) -> None:
    listens = f'LISTEN 0 511 *:{port} *:* users:(("{owner}",pid=7,fd=6))'

    said = judge(tmp_path, role, {"ss": f"echo '{listens}'"})

    assert sentence in said if sentence else "failed=0" in said


def test_too_little_disk_for_a_first_release_is_explained(tmp_path: Path) -> None:
    said = judge(tmp_path, "model_server", {"df": "echo 900"})

    assert "server has 900 MB free for /opt, and a release needs 1800 MB; free some" in said


@pytest.mark.parametrize("role", ["model_server", "locust"])
@pytest.mark.parametrize("interpreter", ["/usr/bin/python3", "python3.11"])
def test_an_interpreter_without_venv_is_explained_unless_the_role_installs_it(
    tmp_path: Path, role: str, interpreter: str
) -> None:
    variables = {"locust_host": "http://a:8000", f"{role}_python": interpreter}
    without_venv = {"python3.11": "echo 3.11; exec false"}

    said = judge(tmp_path, role, without_venv, variables=variables)

    if interpreter == "python3.11":
        assert f"{role}_python is python3.11, which has no ensurepip to make a virtual environment with;" in said
        assert "install its package on this host, such as python3.11-venv, or set" in said
    else:
        assert "failed=0" in said


def test_check_mode_without_python3_apt_is_explained(tmp_path: Path) -> None:
    (tmp_path / "check").mkdir()
    (tmp_path / "real").mkdir()

    said = judge(tmp_path / "check", "grafana", {"dpkg-query": "exit 1"}, "--check")

    assert "server lacks the package python3-apt, without which check mode knows no packages;" in said
    assert "install it there" in said
    assert "failed=0" in judge(tmp_path / "real", "grafana", {"dpkg-query": "exit 1"})


def judge(
    directory: Path, role: str, programs: Dict[str, str], *options: str, variables: Optional[Dict[str, Any]] = None
) -> str:
    """Run a role's preflight on one host, where programs say something else; return what Ansible says."""
    of_all = {
        **LOCAL,
        "haproxy_model_servers": ["a:8000"],
        **PROBE,
        "probe_targets": ["http://a:8000"],
        "locust_host": "http://a:8000",
        "locust_web_port": 8089,
        **(variables or {}),
    }
    inventory = {"all": {"vars": of_all, "hosts": {"server": {}}}}
    tasks = [
        {"ansible.builtin.set_fact": {**FOCAL, "cacheable": True}},
        {"ansible.builtin.import_role": {"name": role, "tasks_from": "preflight"}},
    ]
    play = {"hosts": "all", "gather_facts": False, "tasks": tasks}
    return run_ansible(directory, inventory, [play], *options, programs=programs).stdout


def test_rollback_takes_names_alone(tmp_path: Path) -> None:
    wrong = {"above": "../0.1.0", "path": "/opt", "option": "--help", "two": "a b"}
    hosts = {"name": {"release": "0.1.0-0a1b"}, **{host: {"release": name} for host, name in wrong.items()}}
    inventory = {"all": {"vars": LOCAL}, "model_servers": {"hosts": hosts}}
    (play,) = yaml.safe_load((REPOSITORY / "playbooks" / "rollback.yml").read_text())
    program = ("--extra-vars", "__model_server_program=/bin/echo")  # instead of what the role would have put on a host

    said = stopped(tmp_path, inventory, [play], *program)

    assert said == {
        host: f"release is '{name}'; set it to the name of a release, without a path." for host, name in wrong.items()
    }


def test_rollback_of_a_host_without_a_deployment_says_so(tmp_path: Path) -> None:
    inventory = {"all": {"vars": LOCAL}, "model_servers": {"hosts": {"bare": {}}}}
    playbook = {"ansible.builtin.import_playbook": str(REPOSITORY / "playbooks" / "rollback.yml")}

    said = stopped(tmp_path, inventory, [playbook])

    assert said == {"bare": "Nothing has been deployed on this host yet; run site.yml."}
