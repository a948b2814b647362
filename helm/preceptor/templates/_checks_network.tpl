{{/* The checks of ports, and of who gets through to them. */}}

{{- define "preceptor.checks.listening" -}}
{{- $host := dig "gateway" "host" "127.0.0.1" .Values.config -}}
{{- if or (hasPrefix "127." $host) (has $host (list "localhost" "::1" "[::1]")) -}}
{{- fail (printf "config.gateway.host is %s, which no other pod reaches: set it to 0.0.0.0" $host) -}}
{{- end -}}
{{- $ports := dict "config.gateway.port" (include "preceptor.config.gatewayPort" .) "config.metrics.port" (include "preceptor.config.metricsPort" .) -}}
{{- range $name, $text := $ports -}}
{{- $port := int $text -}}
{{- if or (lt $port 1024) (gt $port 9999) -}}
{{- fail (printf "%s is %d: choose one from 1024 to 9999; Ray's workers listen from 10002, and below 1024 only root may listen" $name $port) -}}
{{- end -}}
{{- if has $port (list 6379 8000 8080 8265) -}}
{{- fail (printf "%s is %d, which Ray listens on itself: choose another" $name $port) -}}
{{- end -}}
{{- end -}}
{{- if eq (get $ports "config.gateway.port") (get $ports "config.metrics.port") -}}
{{- fail (printf "config.gateway.port and config.metrics.port are both %s: choose two" (get $ports "config.gateway.port")) -}}
{{- end -}}
{{- if .Values.podMonitor.enabled -}}
{{- with .Values.podMonitor -}}
{{- if gt (include "preceptor.seconds" .scrapeTimeout | int) (include "preceptor.seconds" .interval | int) -}}
{{- fail (printf "podMonitor.scrapeTimeout is %s, above podMonitor.interval, which is %s, and Prometheus refuses that: lower it" .scrapeTimeout .interval) -}}
{{- end -}}
{{- end -}}
{{- $metricsHost := dig "metrics" "host" "127.0.0.1" .Values.config -}}
{{- if or (not (dig "metrics" "enabled" true .Values.config)) (hasPrefix "127." $metricsHost) (eq $metricsHost "localhost") -}}
{{- fail (printf "podMonitor.enabled is true, but config.metrics (enabled %v, host %s) lets Prometheus read nothing: set config.metrics.enabled to true and config.metrics.host to 0.0.0.0" (dig "metrics" "enabled" true .Values.config) $metricsHost) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "preceptor.checks.peers" -}}
{{- with .Values.networkPolicy -}}
{{- if and .enabled (not .operator) -}}
{{- fail "networkPolicy.operator is empty, so KubeRay could not deploy the service through Ray's dashboard: name its operator's pods by namespace and label, as in ci/minimal-values.yaml" -}}
{{- end -}}
{{- if and .enabled (not .prometheus) $.Values.podMonitor.enabled -}}
{{- fail "podMonitor.enabled is true, and networkPolicy.prometheus is empty, so nobody could read metrics: name your Prometheus' pods by namespace and label, as in ci/gpu-values.yaml" -}}
{{- end -}}
{{- end -}}
{{- if and .Values.networkPolicy.enabled (ne .Values.service.type "ClusterIP") -}}
{{- $fromOutside := false -}}
{{- range .Values.networkPolicy.trainers -}}{{- if .ipBlock -}}{{- $fromOutside = true -}}{{- end -}}{{- end -}}
{{- if not $fromOutside -}}
{{- fail (printf "service.type is %s, whose callers come from addresses and not from pods, and networkPolicy.trainers names no ipBlock, so none of them would get through: add one with their addresses (with service.externalTrafficPolicy Cluster those of the nodes)" .Values.service.type) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.networkPolicy.enabled .Values.networkPolicy.egress.enabled (include "preceptor.isAutoscaling" .) (not .Values.networkPolicy.egress.rules) -}}
{{- fail "networkPolicy.egress.enabled is true and scorers autoscale, which needs the API server: allow it in networkPolicy.egress.rules" -}}
{{- end -}}
{{- end -}}
