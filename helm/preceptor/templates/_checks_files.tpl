{{/* Whatever `config` names has to be mounted by something, on every pod that reads it. */}}

{{- define "preceptor.checks.files" -}}
{{- $uses := dict "tls.certificate" "credential" "tls.private_key" "credential" "tls.client_ca" "credential" "auth.access_file" "credential" "auth.oidc.jwks_file" "credential" "auth.oidc.jwks_ca" "credential" "tracing.ca" "everywhere" "audit.file" "written" "reference_losses.directory" "tables" -}}
{{- range $setting, $use := $uses -}}
{{- $path := $.Values.config -}}
{{- range $key := splitList "." $setting -}}
{{- $path = kindIs "map" $path | ternary (get (kindIs "map" $path | ternary $path dict) $key) "" -}}
{{- end -}}
{{- if $path -}}
{{- include (printf "preceptor.checks.%s" $use) (dict "root" $ "value" (printf "config.%s" $setting) "path" $path) -}}
{{- end -}}
{{- end -}}
{{- if and (include "preceptor.hasTls" .) .Values.tls.probe.authority -}}
{{- include "preceptor.checks.credential" (dict "root" . "value" "tls.probe.authority" "path" .Values.tls.probe.authority) -}}
{{- end -}}
{{- if and .Values.referenceLosses.existingClaim (not (include "preceptor.tablesPath" .)) -}}
{{- fail (printf "referenceLosses.existingClaim is %s, but config.reference_losses.directory is empty, so nobody would read its tables: set that to where they shall be mounted, such as /var/lib/preceptor/tables" .Values.referenceLosses.existingClaim) -}}
{{- end -}}
{{- end -}}

{{/* "true" where extraVolumeMounts, which all pods have, hold a path. Takes root, path; isWritten: not a read-only mount. */}}
{{- define "preceptor.isOnExtraVolume" -}}
{{- $isMounted := false -}}
{{- range .root.Values.extraVolumeMounts -}}
{{- $isWide := hasPrefix (printf "%s/" (trimSuffix "/" .mountPath)) (printf "%s/" (trimSuffix "/" $.path)) -}}
{{- if and $isWide (not (and $.isWritten .readOnly)) -}}{{- $isMounted = true -}}{{- end -}}
{{- end -}}
{{- if $isMounted -}}true{{- end -}}
{{- end -}}

{{/* What gateways read: from the chart's own mounts, or others. Takes root, value, path, as those below. */}}
{{- define "preceptor.checks.credential" -}}
{{- $tls := .root.Values.tls -}}
{{- $sources := dict "/etc/preceptor/tls/" (dict "given" (include "preceptor.tlsSecretName" .root) "remedy" "tls.existingSecret to a Secret with tls.crt and tls.key, or tls.certManager.enabled to true") "/etc/preceptor/client-ca/" (dict "given" $tls.clientCaSecret "remedy" "tls.clientCaSecret to a Secret with ca.crt") "/etc/preceptor/auth/" (dict "given" (or .root.Values.auth.existingSecret .root.Values.auth.grants) "remedy" "auth.existingSecret to a Secret with access.yaml, or auth.grants") -}}
{{- $isMounted := include "preceptor.isOnExtraVolume" . -}}
{{- range $prefix, $source := $sources -}}
{{- if and (hasPrefix $prefix $.path) (not $isMounted) -}}
{{- $isMounted = "true" -}}
{{- if not $source.given -}}
{{- fail (printf "%s is %s, and nothing is mounted there: set %s" $.value $.path $source.remedy) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if not $isMounted -}}
{{- fail (printf "%s is %s, and nothing is mounted there: name a file below %s, or mount it with extraVolumes and extraVolumeMounts" .value .path (keys $sources | sortAlpha | join ", ")) -}}
{{- end -}}
{{- end -}}

{{/* What scorers read as well: they have none of the gateways' credentials. */}}
{{- define "preceptor.checks.everywhere" -}}
{{- if not (include "preceptor.isOnExtraVolume" .) -}}
{{- fail (printf "%s is %s, and nothing is mounted there on gateways and scorers alike: mount it with extraVolumes and extraVolumeMounts" .value .path) -}}
{{- end -}}
{{- end -}}

{{/* What gateways write: the root is read-only, and what lies beside it goes with the pod. */}}
{{- define "preceptor.checks.written" -}}
{{- if not (include "preceptor.isOnExtraVolume" (merge (dict "isWritten" true) .)) -}}
{{- fail (printf "%s is %s, and nothing is mounted there that a gateway could write to: mount a shared volume with extraVolumes and extraVolumeMounts" .value .path) -}}
{{- end -}}
{{- end -}}

{{/* Tables of reference losses, which gateways read. */}}
{{- define "preceptor.checks.tables" -}}
{{- $claim := .root.Values.referenceLosses.existingClaim -}}
{{- if not (or $claim (include "preceptor.isOnExtraVolume" .)) -}}
{{- fail (printf "%s is %s, and nothing is mounted there: set referenceLosses.existingClaim to the claim with the tables, or mount them with extraVolumes and extraVolumeMounts" .value .path) -}}
{{- end -}}
{{- if and $claim (or (not (hasPrefix "/" .path)) (eq .path (include "preceptor.weightsPath" .root))) -}}
{{- fail (printf "%s is %s, where claim %s cannot be mounted: choose an absolute path of its own, such as /var/lib/preceptor/tables" .value .path $claim) -}}
{{- end -}}
{{- end -}}
