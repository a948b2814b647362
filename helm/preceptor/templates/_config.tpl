{{/* What the chart reads from `config`. It never writes there: the service gets it as it stands. */}}

{{- define "preceptor.config.gatewayPort" -}}
{{- dig "gateway" "port" 7600 .Values.config | int -}}
{{- end -}}

{{- define "preceptor.config.metricsPort" -}}
{{- dig "metrics" "port" 9464 .Values.config | int -}}
{{- end -}}

{{- define "preceptor.config.gateways" -}}
{{- dig "gateway" "replicas" 1 .Values.config | int -}}
{{- end -}}

{{- define "preceptor.config.drainSeconds" -}}
{{- dig "gateway" "drain_s" 30.0 .Values.config | float64 | ceil | int -}}
{{- end -}}

{{/* Seconds from the end of a gateway's pod to its SIGKILL: the drain, what Serve adds to it, and a margin. */}}
{{- define "preceptor.gatewayGraceSeconds" -}}
{{- .Values.gateway.terminationGracePeriodSeconds | default (add (include "preceptor.config.drainSeconds" .) 30) | int -}}
{{- end -}}

{{/* The same for a scorer: Serve stops it after every gateway that ends at the same time, which may still need it. */}}
{{- define "preceptor.scorerGraceSeconds" -}}
{{- add (include "preceptor.gatewayGraceSeconds" .) (include "preceptor.config.drainSeconds" .) 30 -}}
{{- end -}}

{{/* "true" where the scorers autoscale. */}}
{{- define "preceptor.isAutoscaling" -}}
{{- if dig "scorer" "max_replicas" "" .Values.config -}}true{{- end -}}
{{- end -}}

{{- define "preceptor.hasTls" -}}
{{- if .Values.config.tls -}}true{{- end -}}
{{- end -}}

{{- define "preceptor.hasAuth" -}}
{{- if .Values.config.auth -}}true{{- end -}}
{{- end -}}

{{/* "true" where a client certificate says who calls. */}}
{{- define "preceptor.hasClientCa" -}}
{{- if dig "client_ca" "" (.Values.config.tls | default dict) -}}true{{- end -}}
{{- end -}}

{{- define "preceptor.weightsPath" -}}
{{- dig "weights" "path" "preceptor-store" .Values.config -}}
{{- end -}}

{{- define "preceptor.tablesPath" -}}
{{- get (.Values.config.reference_losses | default dict) "directory" | default "" -}}
{{- end -}}

{{/* "true" where the weight store is an object store. */}}
{{- define "preceptor.isRemote" -}}
{{- if contains "://" (include "preceptor.weightsPath" .) -}}true{{- end -}}
{{- end -}}

{{- define "preceptor.cachePath" -}}
{{- dig "weights" "cache_path" "preceptor-cache" .Values.config -}}
{{- end -}}

{{/* "true" where the weight store is a directory of a volume of this chart. */}}
{{- define "preceptor.hasVolume" -}}
{{- if and .Values.persistence.enabled (not (include "preceptor.isRemote" .)) -}}true{{- end -}}
{{- end -}}

{{- define "preceptor.claimName" -}}
{{- .Values.persistence.existingClaim | default (printf "%s-store" (include "preceptor.fullname" .)) -}}
{{- end -}}

{{/* Pods of a group of scorers that does not autoscale; 0 is a group that waits, without the second cluster of a removed one. */}}
{{- define "preceptor.groupReplicas" -}}
{{- ternary .replicas 1 (hasKey . "replicas") | int -}}
{{- end -}}

{{/* Seconds of a duration such as 1h30m. */}}
{{- define "preceptor.seconds" -}}
{{- $seconds := 0 -}}
{{- range $part := regexFindAll "[0-9]+[hms]" . -1 -}}
{{- $unit := get (dict "h" 3600 "m" 60 "s" 1) (substr (int (sub (len $part) 1)) (len $part) $part) -}}
{{- $seconds = add $seconds (mul (regexFind "[0-9]+" $part | int) $unit) -}}
{{- end -}}
{{- $seconds -}}
{{- end -}}

{{/* Scorers that fit on one pod of a group: by its GPUs and by its CPUs. */}}
{{- define "preceptor.slots" -}}
{{- $cpus := dig "scorer" "num_cpus" 1.0 .root.Values.config | float64 -}}
{{- $gpus := dig "scorer" "num_gpus" 0.0 .root.Values.config | float64 -}}
{{- $slots := 1000 -}}
{{- if gt $cpus 0.0 -}}{{- $slots = min $slots (floor (divf .group.cpus $cpus)) -}}{{- end -}}
{{- if gt $gpus 0.0 -}}{{- $slots = min $slots (floor (divf (.group.gpus | default 0) $gpus)) -}}{{- end -}}
{{- $slots | int -}}
{{- end -}}
