{{/* Combinations that would not work, or that would let strangers in. Each message names the value and the remedy. */}}

{{- define "preceptor.checks" -}}
{{- include "preceptor.checks.names" . -}}
{{- include "preceptor.checks.listening" . -}}
{{- include "preceptor.checks.tls" . -}}
{{- include "preceptor.checks.auth" . -}}
{{- include "preceptor.checks.files" . -}}
{{- include "preceptor.checks.store" . -}}
{{- include "preceptor.checks.scorers" . -}}
{{- include "preceptor.checks.ray" . -}}
{{- include "preceptor.checks.peers" . -}}
{{- end -}}

{{- define "preceptor.checks.names" -}}
{{- $name := include "preceptor.fullname" . -}}
{{- if gt (len $name) 47 -}}
{{- fail (printf "the name %q has %d characters and KubeRay allows 47: choose a shorter release name, or set fullnameOverride" $name (len $name)) -}}
{{- end -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) -}}
{{- fail (printf "the name %q must begin with a letter and hold only a-z, 0-9 and -: set fullnameOverride" $name) -}}
{{- end -}}
{{- $labels := dict "commonLabels" .Values.commonLabels "head.podLabels" .Values.head.podLabels "gateway.podLabels" .Values.gateway.podLabels -}}
{{- range $name, $group := .Values.scorerGroups -}}{{- $_ := set $labels (printf "scorerGroups.%s.podLabels" $name) $group.podLabels -}}{{- end -}}
{{- range $value, $given := $labels -}}
{{- range $label, $_ := $given | default dict -}}
{{- if regexMatch "^(app\\.kubernetes\\.io|helm\\.sh|ray\\.io)/" $label -}}
{{- fail (printf "%s names %s, by which Services and policies find their pods: choose another prefix" $value $label) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if eq (dig "pool" "ray" .Values.config) "in-process" -}}
{{- fail "config.pool is in-process, which needs no Ray: this chart runs scorers on Ray; remove it" -}}
{{- end -}}
{{- end -}}

{{- define "preceptor.checks.tls" -}}
{{- $tls := .Values.tls -}}
{{- $source := or $tls.existingSecret $tls.certManager.enabled -}}
{{- if and $tls.existingSecret $tls.certManager.enabled -}}
{{- fail (printf "tls.existingSecret is %s and tls.certManager.enabled is true: choose one of them" $tls.existingSecret) -}}
{{- end -}}
{{- with $tls.certManager -}}
{{- if and .enabled (ge (include "preceptor.seconds" .renewBefore | int) (include "preceptor.seconds" .duration | int)) -}}
{{- fail (printf "tls.certManager.renewBefore is %s, and a certificate is valid for %s, so it would be renewed without end: lower it, or raise tls.certManager.duration" .renewBefore .duration) -}}
{{- end -}}
{{- end -}}
{{- if and $source (not (include "preceptor.hasTls" .)) -}}
{{- fail "a certificate is given in tls, but config.tls is empty, so the gateway would speak plaintext: set config.tls, or remove tls.existingSecret and tls.certManager.enabled" -}}
{{- end -}}
{{- if and (include "preceptor.hasClientCa" .) (not $tls.probe.certificateSecret) -}}
{{- fail "config.tls.client_ca asks every client for a certificate, and the pods' probes have none: set tls.probe.certificateSecret to a Secret with tls.crt and tls.key of that authority" -}}
{{- end -}}
{{- if and (ne .Values.service.type "ClusterIP") (not (include "preceptor.hasTls" .)) -}}
{{- fail (printf "service.type is %s without config.tls: weights and data would leave the cluster in the clear; set config.tls, or service.type ClusterIP" .Values.service.type) -}}
{{- end -}}
{{- end -}}

{{- define "preceptor.checks.auth" -}}
{{- $auth := .Values.config.auth | default dict -}}
{{- if and .Values.auth.existingSecret .Values.auth.grants -}}
{{- fail (printf "auth.existingSecret is %s and auth.grants is given too: choose one of them" .Values.auth.existingSecret) -}}
{{- end -}}
{{- if and (or .Values.auth.existingSecret .Values.auth.grants) (not $auth) -}}
{{- fail "auth names an access file, but config.auth is empty, so nobody would be asked: set config.auth.access_file, or remove auth.existingSecret and auth.grants" -}}
{{- end -}}
{{- if not (or $auth (include "preceptor.hasClientCa" .) .Values.allowInsecure) -}}
{{- fail "config.auth is empty and the gateway listens beyond its pod: everybody who reaches it could read, push and delete every run; set config.auth, or allowInsecure to true where nobody else reaches it" -}}
{{- end -}}
{{- if and $auth (not (include "preceptor.hasTls" .)) (not $auth.allow_plaintext) -}}
{{- fail "config.auth without config.tls: tokens would travel in the clear; set config.tls, or config.auth.allow_plaintext to true where something in front of the gateway ends TLS" -}}
{{- end -}}
{{- if and $auth.oidc .Values.auth.grants (not (or (dig "identities" dict .Values.auth.grants) (dig "groups" dict .Values.auth.grants))) -}}
{{- fail "config.auth.oidc is given, but auth.grants grants nobody anything: name identities or groups" -}}
{{- end -}}
{{- end -}}

{{- define "preceptor.checks.store" -}}
{{- $path := include "preceptor.weightsPath" . -}}
{{- if include "preceptor.isRemote" . -}}
{{- $cache := include "preceptor.cachePath" . -}}
{{- if not (hasPrefix "/" $cache) -}}
{{- fail (printf "config.weights.cache_path is %s: in a pod it is a volume, and so an absolute path" $cache) -}}
{{- end -}}
{{- if .Values.persistence.existingClaim -}}
{{- fail (printf "config.weights.path is %s, so persistence.existingClaim %s would stay unused: remove it" $path .Values.persistence.existingClaim) -}}
{{- end -}}
{{- else -}}
{{- if not (hasPrefix "/" $path) -}}
{{- fail (printf "config.weights.path is %s: in a pod only an absolute path, the same everywhere, or a URI such as s3://bucket/prefix, can be a store" $path) -}}
{{- end -}}
{{- if not .Values.persistence.enabled -}}
{{- if not (include "preceptor.isOnExtraVolume" (dict "root" . "path" $path)) -}}
{{- fail (printf "config.weights.path is %s and persistence.enabled is false: gateways and scorers would each have a store of their own, and lose it; set persistence.enabled to true, config.weights.path to a URI, or mount a shared volume there with extraVolumes and extraVolumeMounts" $path) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
