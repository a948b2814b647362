{{/* The rest of the checks: whether what the configuration asks of Ray is there. */}}

{{- define "preceptor.checks.scorers" -}}
{{- $scorer := .Values.config.scorer | default dict -}}
{{- $wanted := dig "replicas" 1 $scorer | int -}}
{{- $most := dig "max_replicas" 0 $scorer | int -}}
{{- $isAutoscaling := include "preceptor.isAutoscaling" . -}}
{{- if and $isAutoscaling (lt $most $wanted) -}}
{{- fail (printf "config.scorer.max_replicas is %d, below config.scorer.replicas, its lower bound, which is %d: raise it" $most $wanted) -}}
{{- end -}}
{{- if not .Values.scorerGroups -}}
{{- fail "scorerGroups is empty, so nobody would score: name at least one group" -}}
{{- end -}}
{{- $places := 0 -}}
{{- $withGpus := list -}}
{{- $offered := list -}}
{{- range $name, $group := .Values.scorerGroups -}}
{{- if $group.gpus -}}{{- $withGpus = append $withGpus $name -}}{{- end -}}
{{- $offered = concat $offered (keys ($group.rayResources | default dict)) -}}
{{- $pods := include "preceptor.groupReplicas" $group | int -}}
{{- if $isAutoscaling -}}
{{- if not $group.maxReplicas -}}
{{- fail (printf "config.scorer.max_replicas is set, so scorers autoscale, but scorerGroups.%s.maxReplicas is not: set it to the most pods it may have" $name) -}}
{{- end -}}
{{- $pods = $group.maxReplicas | int -}}
{{- if lt $pods ($group.minReplicas | default 0 | int) -}}
{{- fail (printf "scorerGroups.%s.maxReplicas is %d, below minReplicas %d: raise it" $name $pods ($group.minReplicas | int)) -}}
{{- end -}}
{{- end -}}
{{- $places = add $places (mul $pods (include "preceptor.slots" (dict "root" $ "group" $group))) -}}
{{- end -}}
{{- if and $withGpus (not (gt (dig "num_gpus" 0.0 $scorer | float64) 0.0)) -}}
{{- fail (printf "scorerGroups.%s has GPUs, but config.scorer.num_gpus is %v, so no scorer would use them: set config.scorer.num_gpus to what each takes, such as 1" (join ", scorerGroups." $withGpus) (dig "num_gpus" 0 $scorer)) -}}
{{- end -}}
{{- $isOnGpu := gt (dig "num_gpus" 0.0 $scorer | float64) 0.0 -}}
{{- if and (eq ($scorer.device | default "auto") "cuda") (not $isOnGpu) -}}
{{- fail (printf "config.scorer.device is cuda, but config.scorer.num_gpus is %v, so Ray would show scorers no GPU: set it to what each takes, such as 1, and give a group gpus" (dig "num_gpus" 0 $scorer)) -}}
{{- end -}}
{{- if and (eq ($scorer.device | default "auto") "cpu") $isOnGpu -}}
{{- fail (printf "config.scorer.device is cpu, but each scorer takes %v of a GPU, which nobody would use: set config.scorer.device to cuda, or config.scorer.num_gpus to 0" $scorer.num_gpus) -}}
{{- end -}}
{{- range $resource, $_ := dig "resources" dict $scorer -}}
{{- if not (has $resource $offered) -}}
{{- fail (printf "config.scorer.resources asks for %s, which no group offers: set scorerGroups.<name>.rayResources.%s" $resource $resource) -}}
{{- end -}}
{{- end -}}
{{- $asked := max $wanted $most -}}
{{- if lt $places $asked -}}
{{- fail (printf "scorerGroups hold %d scorers of %v CPUs and %v GPUs, but config.scorer asks for %d: raise replicas (or maxReplicas), cpus or gpus of a group, or lower config.scorer" $places (dig "num_cpus" 1.0 $scorer) (dig "num_gpus" 0 $scorer) $asked) -}}
{{- end -}}
{{- end -}}

{{- define "preceptor.checks.ray" -}}
{{- if semverCompare "<2.60.0" .Values.ray.version -}}
{{- fail (printf "ray.version is %s, and Preceptor refuses Ray older than 2.60: build the image with a newer one, and name that" .Values.ray.version) -}}
{{- end -}}
{{- if not (dig "gateway" "resources" dict .Values.config) -}}
{{- fail "config.gateway.resources is empty, so a gateway could start on a scorer's pod, where no Service finds it: set it to {preceptor_gateway: 1}" -}}
{{- end -}}
{{- $drain := include "preceptor.config.drainSeconds" . | int -}}
{{- $grace := include "preceptor.gatewayGraceSeconds" . | int -}}
{{- if lt $grace (add $drain 15 | int) -}}
{{- fail (printf "gateway.terminationGracePeriodSeconds is %d, and config.gateway.drain_s %d needs 15 s more than itself: raise it to %d, or leave it out" $grace $drain (add $drain 15)) -}}
{{- end -}}
{{- if and (eq .Values.ray.auth.mode "disabled") (not .Values.allowInsecure) -}}
{{- fail "ray.auth.mode is disabled: whoever reaches Ray's ports could run code on every pod; set it to token, or allowInsecure to true" -}}
{{- end -}}
{{- if and (eq .Values.ray.auth.mode "disabled") (not .Values.networkPolicy.enabled) -}}
{{- fail "ray.auth.mode is disabled and networkPolicy.enabled is false: nothing would keep anybody from running code on every pod; set one of them" -}}
{{- end -}}
{{- with .Values.ray.gcsFaultTolerance -}}
{{- if and .enabled (not .redisAddress) -}}
{{- fail "ray.gcsFaultTolerance.enabled is true without ray.gcsFaultTolerance.redisAddress: set it to host:port of a Redis" -}}
{{- end -}}
{{- if and .enabled .externalStorageNamespace (ne $.Values.ray.upgradeStrategy "None") -}}
{{- fail (printf "ray.gcsFaultTolerance.externalStorageNamespace is %s and ray.upgradeStrategy is %s: a second cluster would read the state of the first in Redis, and fail by it; leave it out, so that KubeRay gives each cluster its own, or set ray.upgradeStrategy to None" .externalStorageNamespace $.Values.ray.upgradeStrategy) -}}
{{- end -}}
{{- if and .enabled (not .passwordSecret.name) (not $.Values.allowInsecure) -}}
{{- fail "ray.gcsFaultTolerance.passwordSecret.name is empty: whoever writes to that Redis runs code on every pod; name the Secret with its password, or set allowInsecure to true" -}}
{{- end -}}
{{- end -}}
{{- if and .Values.grpcRoute.enabled (not .Values.grpcRoute.parentRefs) -}}
{{- fail "grpcRoute.enabled is true without grpcRoute.parentRefs: name the Gateway to attach to" -}}
{{- end -}}
{{- end -}}
