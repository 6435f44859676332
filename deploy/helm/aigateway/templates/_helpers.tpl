{{- define "aigateway.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "aigateway.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "aigateway.labels" -}}
{{ include "aigateway.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "aigateway.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "aigateway.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "aigateway.fleet" -}}
{{- default (printf "%s.%s" .Release.Namespace (include "aigateway.fullname" .)) .Values.redis.fleetName | trunc 64 -}}
{{- end -}}

{{/* "bundled", "external" or "none" */}}
{{- define "aigateway.redis" -}}
{{- if or .Values.redis.url .Values.redis.existingSecret -}}external
{{- else if .Values.valkey.enabled -}}bundled
{{- else -}}none{{- end -}}
{{- end -}}

{{- define "aigateway.valkeySecret" -}}
{{- default (printf "%s-valkey" (include "aigateway.fullname" .)) .Values.valkey.existingSecret -}}
{{- end -}}

{{/* Says at `helm install` what would otherwise be seen in the log of a pod that does not start. */}}
{{- define "aigateway.check" -}}
{{- $config := fromToml .Values.config -}}
{{- if $config.Error -}}
{{- fail (printf "config: is not valid TOML: %s" $config.Error) -}}
{{- end -}}
{{- $server := default dict $config.server -}}
{{- $gateway := default dict $config.gateway -}}
{{- $variables := dict -}}
{{- range .Values.env -}}{{- $_ := set $variables .name true -}}{{- end -}}
{{- range $name, $_ := .Values.secrets.values -}}{{- $_ := set $variables $name true -}}{{- end -}}
{{- if not (or $server.keys (hasKey $variables "AIGATEWAY_SERVER_KEYS")) -}}
{{- fail "config: has no [[server.keys]]; without keys everybody who can reach the service could spend your money, so it would not start. Make a key with `aigateway key --name NAME` and put the lines that it prints into config." -}}
{{- end -}}
{{- if not (or $config.providers .Values.secrets.existing .Values.secrets.values .Values.env) -}}
{{- fail "no provider: put vendors' keys such as OPENAI_API_KEY into a Secret named in secrets.existing (or into secrets.values), or [[providers]] into config." -}}
{{- end -}}
{{- range $config.providers -}}
{{- if hasKey . "api_key" -}}
{{- fail "config: [[providers]] has api_key, and a ConfigMap is no place for keys; name a variable in its place, such as OPENAI_API_KEY, and put that into a Secret (secrets.existing, secrets.values)." -}}
{{- end -}}
{{- end -}}
{{- range $name, $value := dict "host" "the chart listens on all addresses of a pod" "port" "use service.port" "drain_seconds" "use drain.seconds" "drain_notice_seconds" "use drain.noticeSeconds" "state_dir" "use state" -}}
{{- if hasKey $server $name -}}
{{- fail (printf "config: [server] has %s, which the chart sets; %s." $name $value) -}}
{{- end -}}
{{- end -}}
{{- range $name, $value := dict "redis_url" "use redis.url or redis.existingSecret" "fleet_name" "use redis.fleetName" -}}
{{- if hasKey $gateway $name -}}
{{- fail (printf "config: [gateway] has %s, which the chart sets; %s." $name $value) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.redis.url .Values.redis.existingSecret -}}
{{- fail "redis: has url and existingSecret; give one." -}}
{{- end -}}
{{- $noticed := mul .Values.readinessProbe.periodSeconds .Values.readinessProbe.failureThreshold -}}
{{- if le (int .Values.drain.noticeSeconds) (int $noticed) -}}
{{- fail (printf "drain.noticeSeconds: is %v; make it more than the %v seconds after which the readiness probe has failed (periodSeconds times failureThreshold)." .Values.drain.noticeSeconds $noticed) -}}
{{- end -}}
{{- if le (int .Values.drain.seconds) (int .Values.drain.noticeSeconds) -}}
{{- fail "drain.seconds: must be more than drain.noticeSeconds, which is its first part." -}}
{{- end -}}
{{- if .Values.state.persistence.enabled -}}
{{- if or .Values.autoscaling.enabled (ne (int .Values.replicaCount) 1) -}}
{{- fail "state.persistence: takes exactly one pod, because two must not write to one SQLite file; set replicaCount to 1 and autoscaling.enabled to false, or leave persistence off: with Redis, what pods share outlives each of them." -}}
{{- end -}}
{{- end -}}
{{- if .Values.autoscaling.enabled -}}
{{- if not (dig "requests" "cpu" "" .Values.resources) -}}
{{- fail "autoscaling: measures CPU by resources.requests.cpu; set it." -}}
{{- end -}}
{{- end -}}
{{- if and .Values.serviceMonitor.enabled (not .Values.serviceMonitor.keySecret.name) -}}
{{- fail "serviceMonitor.keySecret.name: /metrics needs a key of the service; name the Secret that has one." -}}
{{- end -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.hosts) -}}
{{- fail "ingress.hosts: name at least one host." -}}
{{- end -}}
{{- end -}}
